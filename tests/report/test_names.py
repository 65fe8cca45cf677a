"""Short forms of long names."""

from rankckpt_jax.report import names


def test_shorten_names_keeps_different_names_different():
    long = [f"vit_base_patch16_{i}_in21k_ft_in1k" for i in range(3)]
    short = names.shorten_names([*long, "a"], 12)
    assert len(set(short)) == 4
    assert short[3] == "a"
    assert all("…" in name for name in short[:3])


def test_shorten_names_counts_wide_characters_twice():
    (short,) = names.shorten_names(["名" * 10], 9)
    assert names.text_width(short) <= 9


def test_shorten_in_text_prefers_the_longest_name():
    long = "a" * 50
    text = f"Its lead over {long}b is larger than that of {long}."
    short = names.shorten_in_text(text, [long, f"{long}b"], 20)
    assert len(short) < 90
    assert short.startswith("Its lead over aaaaaaaaa…aaaaaaaaab is")
    assert short.endswith("that of aaaaaaaaa…aaaaaaaaaa.")
    assert names.shorten_in_text(text, ["unknown"], 5) == text
