"""Token texts -> ids, and the check that a tokenizer keeps a format's marks apart."""

from typing import Any

from data.errors import UserError
from prm.formats.encode import encode_all
from prm.formats.spec import PRMFormat


def token_id(tokenizer: Any, text: str, what: str) -> int:
    """Return the id of the one token that reads `text`, a leading space included.

    Looked up by the vocabulary's own spelling and not by encoding: encoders that prepend a space give "+" and
    " +" the same id. Raises UserError when there is no such token.
    """
    spellings = [text, text.replace(" ", "▁"), _byte_level(text)]
    for spelling in spellings:
        found = tokenizer.convert_tokens_to_ids(spelling)
        if found is not None and found != tokenizer.unk_token_id:
            return found
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
        return ids[0]
    raise UserError(
        f"the tokenizer has no single token {text!r} ({what} of the format); choose another --format, "
        "or set the token in a format file"
    )


def _byte_level(text: str) -> str:
    """The spelling in byte-level vocabularies, where unprintable bytes stand as letters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable} | {byte: chr(256 + k) for k, byte in enumerate(rest)}
    return "".join(table[byte] for byte in text.encode())


def check_tokens(tokenizer: Any, spec: PRMFormat, *, published: bool) -> None:
    """Raise UserError unless a solution of two steps gets two different places at known tokens.

    published: also compare with the ids of the published tokenizer.
    """
    (row,) = encode_all(tokenizer, spec, ["What is 1 + 1?"], [["First.", "Second."]])
    places = row.step_ends
    if None in places or places[0] == places[1]:
        raise UserError(f"format '{spec.name}': the tokenizer loses the separator {spec.separator!r}")
    unknown = tokenizer.unk_token_id
    if unknown is not None and any(row.input_ids[index] == unknown for index in row.separators):
        raise UserError(
            f"format '{spec.name}': the tokenizer does not know the separator {spec.separator!r}; "
            "the model was trained with another one"
        )
    if spec.readout == "two_token":
        good, bad = token_id(tokenizer, spec.good, "good"), token_id(tokenizer, spec.bad, "bad")
        if good == bad:
            raise UserError(f"format '{spec.name}': {spec.good!r} and {spec.bad!r} are one token")
        if published:
            _compare(spec, "good", good)
            _compare(spec, "bad", bad)
    if published and spec.layout != "turns" and spec.read == "separator_end":
        _compare(spec, "separator", row.input_ids[places[0] or 0])


def _compare(spec: PRMFormat, what: str, found: int) -> None:
    expected = spec.token_ids.get(what)  # type: ignore[call-overload]
    if expected is not None and found != expected:
        raise UserError(
            f"format '{spec.name}': {what} is token {found} in this tokenizer, {expected} in the published "
            "one; give the tokenizer that belongs to the model"
        )
