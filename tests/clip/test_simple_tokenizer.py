import hashlib
import random

import open_clip.tokenizer
import pytest
import torch

import clip
from clip.simple_tokenizer import MERGES, SimpleTokenizer

START, END = 49406, 49407
TEXTS = [
    "",
    " ",
    "\t\n",
    "a photo of a dog.",
    "a centered satellite photo of Annual Crop Land.",
    "A PHOTO  of\n\ta   Yak-40, a type of aircraft.",
    "I'm sure they'LL say it's what we'd've don't 'S 'tis",
    "rock 'n' roll's \"quoted\" (brackets) [and] {more}",
    "1234567890 3.14 2e-5 747-400",
    "fish &amp; chips &amp;amp; peas &lt;b&gt; &eacute;&#39; &notanentity;",
    "<b>fish</b> &amp;amp;amp; chips &amp;amp; peas",
    "naïve café Ångström Æsir ǅ ß ſ İstanbul",
    "mojibake: schÃ¶n âœ” l’été “quotes” ﬁne",
    "漢字とカナ 한국어 ภาษาไทย हिन्दी العربية",
    "🙂🙂 👩‍🚀 🇺🇳 1️⃣",
    "under_score__twice dash—em…dots!!!???",
    "\u00a0non\u2003breaking\u200bzero\x00null\x7f",
    "donaudampfschifffahrtsgesellschaftskapitänsmütze",
    "aaaaaaaaaaaaaaaa abababababab",
    "the cat sat on the mat " * 40,
]


@pytest.fixture(scope="module")
def tokenizer():
    return SimpleTokenizer()


@pytest.fixture(scope="module")
def reference():
    return open_clip.tokenizer.SimpleTokenizer()


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_has_the_tokens_that_open_clip_gives_it(text, tokenizer, reference):
    tokens = tokenizer.encode(text)
    assert tokens == reference.encode(text)
    assert tokenizer.decode(tokens) == reference.decode(tokens)


def test_random_characters_have_the_tokens_that_open_clip_gives_them(tokenizer, reference):
    rng = random.Random(0)
    alphabets = [range(0x20, 0x7F), range(0x20, 0x250), range(0x20, 0xD800), range(0x1F300, 0x1F700)]
    for _ in range(400):
        text = "".join(chr(rng.choice(rng.choice(alphabets))) for _ in range(rng.randint(1, 30)))
        assert tokenizer.encode(text) == reference.encode(text), repr(text)


def test_the_vocabulary_is_openais(tokenizer):
    assert len(tokenizer.encoder) == len(tokenizer.decoder) == 49408
    assert tokenizer.encoder["<|startoftext|>"] == START and tokenizer.encoder["<|endoftext|>"] == END
    digest = hashlib.sha256(MERGES.read_bytes()).hexdigest()
    assert digest == "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
    licence = MERGES.with_name("bpe_simple_vocab_16e6.LICENSE").read_text()
    assert "Copyright (c) 2021 OpenAI" in licence and digest in licence


def test_special_tokens_written_out_are_one_token_each(tokenizer):
    assert tokenizer.encode("<|startoftext|>hi<|ENDOFTEXT|>") == [START, *tokenizer.encode("hi"), END]


def test_decode_gives_the_cleaned_text_back(tokenizer):
    tokens = tokenizer.encode("A  Photo of\n naïve 漢字 🙂")
    assert tokenizer.decode(tokens) == "a photo of naïve 漢字 🙂 "
    assert tokenizer.decode(torch.tensor(tokens)) == tokenizer.decode(tokens)


def test_tokenize_frames_the_tokens_and_pads_with_zeros(tokenizer):
    tokens = clip.tokenize(["a dog", ""])
    assert tokens.dtype == torch.int64 and tokens.shape == (2, 77)
    words = tokenizer.encode("a dog")
    assert tokens[0].tolist() == [START, *words, END] + [0] * (75 - len(words))
    assert tokens[1].tolist() == [START, END] + [0] * 75
    assert tokens.argmax(dim=-1).tolist() == [len(words) + 1, 1]


def test_tokenize_takes_one_text_as_a_list_of_one():
    assert torch.equal(clip.tokenize("a dog"), clip.tokenize(["a dog"]))


def test_tokenize_equals_open_clips_for_all_texts_with_truncation(reference):
    assert torch.equal(clip.tokenize(TEXTS, truncate=True), reference(TEXTS))
    assert torch.equal(clip.tokenize(TEXTS, context_length=12, truncate=True), reference(TEXTS, 12))


def test_75_tokens_fit_and_76_raise_openais_error():
    fits, too_long = " ".join(["dog"] * 75), " ".join(["dog"] * 76)
    assert clip.tokenize(fits)[0, -1] == END
    with pytest.raises(RuntimeError, match=f"^Input {too_long} is too long for context length 77$"):
        clip.tokenize(["dog", too_long])
    with pytest.raises(RuntimeError, match="^Input a dog is too long for context length 3$"):
        clip.tokenize("a dog", context_length=3)


def test_truncation_keeps_the_first_tokens_and_ends_with_end_of_text():
    tokens = clip.tokenize(" ".join(["dog"] * 100), truncate=True)
    assert torch.equal(tokens, clip.tokenize(" ".join(["dog"] * 75)))
