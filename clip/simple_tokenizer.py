"""CLIP's byte-pair tokenizer: text -> ids (Sennrich et al., 2016; Radford et al., 2021).

The vocabulary has 49,408 ids: 0-255 are single bytes, 256-511 the same bytes at the end of a word, then one
per merge in the order in which the merges were learned, then start of text (49406) and end of text (49407).
"""

import gzip
import html
from collections.abc import Iterable
from itertools import islice, pairwise
from pathlib import Path

import ftfy
import regex

MERGES = Path(__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
MERGE_COUNT = 49152 - 256 - 2  # CLIP uses the first of the 262,144 lines that the file holds
SPECIAL = ("<|startoftext|>", "<|endoftext|>")
END_OF_WORD = "</w>"
# A special token, an English clitic, a run of letters, one digit, or a run of anything else that isn't space.
WORD = regex.compile(
    "|".join(map(regex.escape, SPECIAL)) + r"|'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)


def byte_characters() -> dict[int, str]:
    """{byte: character} (256): printable Latin-1 stands for itself, other bytes for characters from U+0100.

    The order of the entries is the order of the vocabulary's first ids.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def clean(text: str) -> str:
    """Mends encodings, unescapes HTML (twice: some captions were escaped twice), joins spaces, lowers."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


class SimpleTokenizer:
    """`encode(text)` -> ids, `decode(ids)` -> text; `encoder` is {token: id}, `decoder` its inverse."""

    def __init__(self, bpe_path: str | Path = MERGES):
        with gzip.open(bpe_path, "rt", encoding="utf-8") as lines:
            merges = [tuple(line.split()) for line in islice(lines, 1, 1 + MERGE_COUNT)]  # line 0 is a version
        self.byte_encoder = byte_characters()
        self.byte_decoder = {character: byte for byte, character in self.byte_encoder.items()}
        characters = list(self.byte_encoder.values())
        tokens = characters + [c + END_OF_WORD for c in characters] + ["".join(pair) for pair in merges]
        self.encoder = {token: i for i, token in enumerate([*tokens, *SPECIAL])}
        self.decoder = {i: token for token, i in self.encoder.items()}
        self.bpe_ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.cache = {token: [self.encoder[token]] for token in SPECIAL}  # word -> its ids

    def encode(self, text: str) -> list[int]:
        """text -> list of ids, without start of text and end of text."""
        return [i for word in WORD.findall(clean(text)) for i in self._word_ids(word)]

    def decode(self, tokens: Iterable[int]) -> str:
        """ids -> text, with a space behind each word; bytes that aren't UTF-8 become U+FFFD."""
        text = "".join(self.decoder[int(token)] for token in tokens)
        decoded = bytes(self.byte_decoder[character] for character in text).decode("utf-8", errors="replace")
        return decoded.replace(END_OF_WORD, " ")

    def _word_ids(self, word):
        if word not in self.cache:
            characters = [self.byte_encoder[byte] for byte in word.encode("utf-8")]
            characters[-1] += END_OF_WORD
            self.cache[word] = [self.encoder[part] for part in self._merge(characters)]
        return self.cache[word]

    def _merge(self, parts):
        """Joins the pair that was learned first, wherever it occurs, until no learned pair is left."""
        while pairs := [pair for pair in pairwise(parts) if pair in self.bpe_ranks]:
            first = min(pairs, key=self.bpe_ranks.get)
            i = 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == first:
                    parts[i : i + 2] = ["".join(first)]
                i += 1
        return parts
