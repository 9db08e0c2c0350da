"""Text statistics: loops, refusals, openings, near-duplicates, diversity, overlap with a reference.

Pure and deterministic. "Words" are the result of `words`, which supports every alphabet and scripts without spaces.
Length confounds diversity: cut all texts to one number of words (`at_budget`) before a comparison of two sides.
"""

from skill_kd.textstats.diversity import VOCABULARY, distinct, ead, rouge_l, self_bleu, vendi
from skill_kd.textstats.duplicates import SIMILAR, NearDuplicates
from skill_kd.textstats.signs import LOOPING, compression, entropy, looping, opening, opening_share, refusal, repetition
from skill_kd.textstats.tokens import Words, at_budget, ngrams, words

__all__ = [
    "LOOPING",
    "SIMILAR",
    "VOCABULARY",
    "NearDuplicates",
    "Words",
    "at_budget",
    "compression",
    "distinct",
    "ead",
    "entropy",
    "looping",
    "ngrams",
    "opening",
    "opening_share",
    "refusal",
    "repetition",
    "rouge_l",
    "self_bleu",
    "vendi",
    "words",
]
