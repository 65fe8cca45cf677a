import pytest

from rankckpt_jax.errors import InputError
from rankckpt_jax.storage import named_numbers


def read(path, data):
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return named_numbers.read(path)


def values(path, data):
    return {name: n.value for name, n in read(path, data).numbers.items()}


@pytest.mark.parametrize(
    "data",
    [
        "a,0.87\nb c,-1.5e-1\n",
        "\ufeffa,0.87\nb c,-1.5e-1\n",
        "a;0,87\r\nb c;-1,5e-1\r\n",
        'a,"0,87"\nb c,"-1,5e-1"\n',
        '"a", 0.87\n"b c", -.15\n\n',
        "a\t0,87\nb c\t-0,15",
        "a,0.87\nb c,-0.15\nnot run yet,\n",
        "a,0.87,first try\nb c,-0.15,3\n",
        "a;0,87\nb c;-0,15\n".encode("utf-16"),
    ],
)
def test_read_accepts_the_formats_of_spreadsheets(tmp_path, data):
    assert values(tmp_path / "n.csv", data) == {"a": 0.87, "b c": -0.15}


def test_read_returns_heading_percent_signs_and_lines(tmp_path):
    table = read(tmp_path / "n.csv", 'name;top-1, %\n\n"a;b";87,5 %\nc;3\n')
    assert table.heading == "top-1, %"
    assert table.numbers == {
        "a;b": named_numbers.Number(87.5, percent=True, line=3),
        "c": named_numbers.Number(3.0, percent=False, line=4),
    }
    assert read(tmp_path / "n.csv", "").numbers == {}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("a,0,87\nb,0,91\n", r"decimal comma[\s\S]*line 1"),
        ("name,accuracy\na,0,87\n", r"decimal comma[\s\S]*line 2"),
        ("a,0.87\nb,high\n", r"no name and number[\s\S]*line 2"),
        ("a,0.87\n,0.5\n", r"no name and number[\s\S]*line 2"),
        ("a,0.87\nb\n", r"no name and number[\s\S]*found: b"),
        ('a,0.87\nb,"1,5"\n', "different decimal separators"),
        ('a,"1,234.5"\nb,2\n', "no name and number"),
        ("a,0.87\na,0.9\n", r"'a' has two numbers[\s\S]*lines 1 and 2"),
        ("é,0.87\n".encode("latin-1"), "UTF-8"),
    ],
)
def test_read_refuses_what_it_could_misread(tmp_path, data, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path / "n.csv", data)
    with pytest.raises(InputError, match="cannot be read"):
        named_numbers.read(tmp_path / "absent.csv")
