"""How robust a semantic segmentation model is: pixel accuracy and mean IoU over eps."""
