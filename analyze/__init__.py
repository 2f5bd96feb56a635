"""How well a data set packs: sizes, packers measured, the page that recommends a sequence length."""
