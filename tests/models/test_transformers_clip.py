import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from hf_robust_ft import PixelSpace, load_image_classifier

NAMES = ["cat", "dog", "red rose"]
WORDS = ["a", "photo", "of", "cat", "dog", "red", "rose", ".", "<pad>", "<s>", "</s>", "<unk>"]
TEXT = {
    "vocab_size": 16,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "projection_size": 32,
    "bos_token_id": 9,
    "eos_token_id": 10,
    "pad_token_id": 8,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.fixture
def tokenizer():
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 9), ("</s>", 10)]
    )
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=16, **special)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_zero_shot_heads_predict_as_the_two_towers(kind, tokenizer, tmp_path):
    torch.manual_seed(0)
    if kind == "clip":
        model = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=24))
        processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    else:
        model = SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION))
        processor = SiglipImageProcessor(size={"height": 32, "width": 32})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for part in (model.eval(), processor, tokenizer):
        part.save_pretrained(tmp_path)
    classifier, own = load_image_classifier(str(tmp_path), label_names=NAMES, head="zero_shot")
    assert type(classifier).__name__ == "TimmWrapperForImageClassification"
    assert PixelSpace.from_processor(own) == PixelSpace.from_processor(processor)
    pixel_values = processor(Image.effect_noise((32, 32), 80).convert("RGB"), return_tensors="pt")["pixel_values"]
    padding = {"padding": "max_length"} if kind == "siglip" else {"padding": True}
    texts = tokenizer([f"a photo of a {name}." for name in NAMES], return_tensors="pt", **padding)
    bias = model.logit_bias if kind == "siglip" else 0.0
    with torch.no_grad():
        expected = model(pixel_values=pixel_values, **texts).logits_per_image - bias
        folded = classifier(pixel_values).logits - bias
    factor = folded.norm() / expected.norm()
    assert factor > 0.2 and torch.allclose(folded, factor * expected, atol=1e-4)
    # The processors agree on an image of the right size, where nothing is resampled.
    image = Image.effect_noise((32, 32), 80).convert("RGB")
    assert torch.allclose(
        own(image, return_tensors="pt")["pixel_values"],
        processor(image, return_tensors="pt")["pixel_values"],
        atol=1e-5,
    )


def test_other_models_have_no_text_tower(make_model, processor, tmp_path):
    make_model("vit").save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"needs a text tower: a CLIP or SigLIP .* is vit"):
        load_image_classifier(str(tmp_path), label_names=NAMES, head="zero_shot")
