"""What a token is: one base (the default), a k-mer, or a learned piece of sequence. Same letters and special ids in all.

`encode_codes` turns the letters of a record into tokens, `decode_codes` gives them back, `bases_per_token` says how many bases
each token stands for, and `tokenizer` is the same vocabulary for Hugging Face programs that know nothing of dnascale.
"""

from dnascale.vocab.character import CHARACTER, PREDICTED_BASES, SOFT_MASK_BIT, Vocabulary
from dnascale.vocab.load import load_vocabulary, read_vocabulary, vocabulary_from_json

__all__ = [
    "CHARACTER", "PREDICTED_BASES", "SOFT_MASK_BIT", "Vocabulary", "load_vocabulary", "read_vocabulary",
    "vocabulary_from_json",
]  # fmt: skip
