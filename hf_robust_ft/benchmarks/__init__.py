"""Side-by-side measurements against other libraries; each is a script that prints JSON."""
