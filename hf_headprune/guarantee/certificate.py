"""Certificate: what was shown, on which data, for which weights; frozen, JSON, checked when read."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_headprune._beside_weights import write_text
from hf_headprune._certificate_file import CERTIFICATE_NAME
from hf_headprune._strict_json import parse, path_of, read, read_text
from hf_headprune.errors import CertificateError, InvalidSettingError, shown
from hf_headprune.guarantee.claim import AGREEMENT, METHODS, Claim, Kind
from hf_headprune.guarantee.evidence import Evidence, checked_scores
from hf_headprune.guarantee.examples import INPUT_BYTES, LABEL_BYTES
from hf_headprune.guarantee.format_2 import FORMAT_2, upgraded
from hf_headprune.guarantee.outcomes import PairedScores
from hf_headprune.guarantee.path import CertifiedPath
from hf_headprune.guarantee.wording import assumptions_of, statement_of, statement_of_several, stop_in_words

CERTIFICATE_FORMAT = "hf_headprune.certificate/3"
DENSE = "the dense model"
DERIVED = ("statement", "method", "assumptions")
_KEY_BYTES = INPUT_BYTES + LABEL_BYTES


@dataclass(frozen=True)
class ExampleRecord:
    """Outcome of each example, in the order of the fingerprints; that of no data set.

    Attributes:
        kind: How inputs are compared, see `ExampleFingerprints`.
        columns: Text columns that were read.
        keys: Fingerprints of input and label of each example, 12 bytes each, in base64.
        dense: Scores of the dense model: digits for 0/1 scores; else numbers between ";", rows of them between ",".
        pruned: Those of the pruned model.
        groups: Numbers of the groups between ";", or None.
        labelled: Digits, 1 where an example has a label; None where all have one. Without one the dense model's answer
            was taken for the right one.
        changed: Digits, 1 where the pruned model answers otherwise, right or wrong; None where only scores are known.
    """

    kind: str
    columns: tuple[str, ...]
    keys: str
    dense: str
    pruned: str
    groups: str | None
    labelled: str | None = None
    changed: str | None = None

    @classmethod
    def of(
        cls, kind: str, columns: tuple[str, ...], keys: list[bytes], scores: PairedScores, score_kind: Kind
    ) -> ExampleRecord:
        """Writes scores down."""
        groups = None if scores.groups is None else ";".join(str(int(group)) for group in scores.groups)
        dense, pruned = (_written(values, score_kind) for values in (scores.dense, scores.pruned))
        marks = (None if marks is None else _written(marks, "binary") for marks in (scores.labelled, scores.changed))
        return cls(kind, columns, base64.b64encode(b"".join(keys)).decode(), dense, pruned, groups, *marks)

    def __len__(self) -> int:
        """Examples on record."""
        return len(self.keys) * 3 // 4 // _KEY_BYTES  # base64 writes three bytes in four letters

    def key_list(self) -> list[bytes]:
        """Returns the fingerprints of the examples.

        Raises:
            CertificateError: They are damaged.
        """
        try:
            joined = base64.b64decode(self.keys, validate=True)
        except ValueError as error:
            raise CertificateError(f"examples.keys must be base64, received {shown(self.keys)}: {error}.") from error
        if len(joined) % _KEY_BYTES:
            raise CertificateError(f"examples.keys must hold {_KEY_BYTES} bytes per example, received {len(joined)}.")
        return [joined[start : start + _KEY_BYTES] for start in range(0, len(joined), _KEY_BYTES)]

    def scores(self, score_kind: Kind) -> PairedScores:
        """Returns the scores.

        Raises:
            CertificateError: They are damaged or out of range, there are none, or their numbers differ.
        """
        count = len(self.key_list())
        try:
            dense, pruned = (
                checked_scores(_read_scores(text, score_kind), count, score_kind) for text in (self.dense, self.pruned)
            )
            groups = None if self.groups is None else np.array([int(group) for group in self.groups.split(";")])
            marks = [
                None if text is None else _read_scores(text, "binary") > 0 for text in (self.labelled, self.changed)
            ]
        except ValueError as error:
            raise CertificateError(f"examples: scores of kind {score_kind!r} are damaged: {error}.") from error
        if not count or dense.shape != pruned.shape or len(dense if groups is None else groups) != count:
            raise CertificateError(
                f"examples: scores and groups must be equally many, and some, received {count} keys, scores of shapes "
                f"{dense.shape} and {pruned.shape}, and {'no' if groups is None else len(groups)} groups."
            )
        if any(mark is not None and len(mark) != count for mark in marks):
            raise CertificateError(f"examples: labelled and changed must be None or {count} digits.")
        return PairedScores(dense, pruned, groups, *marks)


@dataclass(frozen=True)
class ModelRecord:
    """What identifies a model.

    Attributes:
        name: Of the class; else what it is, such as "the ONNX file a.onnx".
        weights: sha256 of all parameters and buffers that are saved, or of a file or recorded answers; None where there
            is nothing of which to take it, as for a function.
        config: sha256 of the configuration, without paths and versions; None for what is no model of torch.
        parameters: Their number, or None.
    """

    name: str
    weights: str | None
    config: str | None
    parameters: int | None


@dataclass(frozen=True)
class DisjointnessRecord:
    """A split that was compared with the certification split and shares no input with it.

    Attributes:
        name: "train" or "search".
        split: sha256 of that split.
        examples: Its size.
        compared_by: How: by "input_ids", by "text", or by both; by "content" where there is neither.
    """

    name: str
    split: str
    examples: int
    compared_by: tuple[str, ...]


@dataclass(frozen=True)
class Environment:
    """What the models ran on.

    Attributes:
        versions: Of packages, as "name version".
        device: Type of the device.
        dtype: Of the pruned model's weights.
        date: When, in UTC.
    """

    versions: tuple[str, ...]
    device: str
    dtype: str
    date: str


@dataclass(frozen=True)
class Promise:
    """One of the claims that a certificate makes together.

    Attributes:
        claim: What was to be shown.
        evidence: What the data say, and the verdict on this claim.
        split: sha256 of its examples.
        disjointness: Splits that share no input with them.
        examples: Outcome of each example.
    """

    claim: Claim
    evidence: Evidence
    split: str
    disjointness: tuple[DisjointnessRecord, ...]
    examples: ExampleRecord


@dataclass(frozen=True)
class Certificate:
    """Statement about unseen data, with all that is needed to check it again.

    Attributes:
        claim: What was to be shown.
        reference: The model that the pruned one is compared with, in words.
        evidence: What the data say, and the verdict.
        split: sha256 of the certification split: inputs and labels in whatever order.
        disjointness: Splits that share no input with it.
        path: Candidates that were tested before this one and the one after, or None where only this one was.
        dense: The model that the pruned one is compared with.
        pruned: The model that the statement is about.
        examples: Outcome of each example.
        steered_training: Whether evaluations on the examples steered training, see `CertificationData`.
        environment: What the models ran on.
        promises: Claims that must hold too, where there are several: claim, evidence, split and examples above are
            those of the worst, and with it the verdict on all.
        unused: Examples of the split after those that made the verdict certain, in the order of their fingerprints.
    """

    claim: Claim
    reference: str
    evidence: Evidence
    split: str
    disjointness: tuple[DisjointnessRecord, ...]
    path: CertifiedPath | None
    dense: ModelRecord
    pruned: ModelRecord
    examples: ExampleRecord
    steered_training: bool
    environment: Environment
    promises: tuple[Promise, ...] = ()
    unused: int = 0

    @property
    def verdict(self) -> str:
        """One of "PASS", "FAIL" and "INCONCLUSIVE"."""
        return self.evidence.verdict

    @property
    def statement(self) -> str:
        """The certificate in words."""
        checked = tuple(record.name for record in self.disjointness)
        worst = statement_of(
            self.claim,
            self.evidence,
            reference=self.reference,
            checked=checked,
            steered_training=self.steered_training,
            labelled=self.examples.labelled,
        )
        worst += "".join(f" {it.name} has no fingerprint: it may have changed." for it in self.not_fingerprinted)
        if self.claim.stops_early:
            worst = f"{worst} {stop_in_words(self.evidence.examples, self.unused)}"
        if not self.promises:
            return worst
        return statement_of_several(worst, [(it.claim, it.evidence) for it in self.parts()])

    @property
    def not_fingerprinted(self) -> tuple[ModelRecord, ...]:
        """What was compared, and can't be recognised again."""
        return tuple(record for record in (self.dense, self.pruned) if record.weights is None)

    def parts(self) -> tuple[Certificate, ...]:
        """Returns a certificate for each promise, the worst first; this one where there is no other."""
        named = tuple({name: getattr(it, name) for name in Promise.__dataclass_fields__} for it in self.promises)
        return tuple(dataclasses.replace(self, promises=(), **fields) for fields in ({}, *named))

    @property
    def assumptions(self) -> tuple[str, ...]:
        """Sentences under which the statement holds."""
        return assumptions_of(
            self.claim,
            has_groups=self.examples.groups is not None,
            steered_training=self.steered_training,
            has_labels=self.examples.labelled is None or "1" in self.examples.labelled,
        )

    def to_json(self) -> str:
        """Returns JSON text that `from_json` reads back to an equal certificate."""
        content = {"format": CERTIFICATE_FORMAT, **self._words(), **dataclasses.asdict(self)}
        content["sha256"] = checksum_of(content)
        return json.dumps(content, indent=1)

    def _words(self) -> dict[str, Any]:
        """Returns what follows from the rest, as JSON holds it."""
        method, assumptions = METHODS[self.claim.kind], list(self.assumptions)
        return {"statement": self.statement, "method": method, "assumptions": assumptions}

    @classmethod
    def from_json(cls, text: str) -> Certificate:
        """Reads what `to_json` wrote, in this format or the one before; the words are those of this format.

        Raises:
            CertificateError: The text is no certificate of these formats, or it was changed after it was written.
        """
        content = _content_of(text)
        changed = content.pop("sha256") != checksum_of(content)
        words = {name: content.pop(name) for name in DERIVED}
        is_old = content.pop("format") == FORMAT_2
        try:
            certificate = read(cls, upgraded(content, DENSE) if is_old else content, "certificate")
        except (
            ArithmeticError,
            InvalidSettingError,
            LookupError,
            TypeError,
        ) as error:  # some of an old one by its words
            raise CertificateError(f"certificate: {error}") from error
        fits = is_old or words == certificate._words()
        if changed or not fits:
            raise CertificateError(
                "certificate: the content was changed after it was written (its sha256 does not match"
                + ("" if fits else ", or its statement, method and assumptions do not fit the rest")
                + "). Take the file from where it was published, or certify anew."
            )
        return certificate

    def save(self, folder: str | Path) -> Path:
        """Writes `headprune_certificate.json` into a folder, which is created; returns the path of the file."""
        path = Path(folder, CERTIFICATE_NAME)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, self.to_json())
        return path

    @classmethod
    def load(cls, path: str | Path) -> Certificate:
        """Reads a certificate from its file or from the folder that holds it.

        Raises:
            CertificateError: There is none, or it is malformed or changed.
        """
        found = path_of(path, "Certificate.load")
        file = found / CERTIFICATE_NAME if found.is_dir() else found
        if not file.is_file():
            raise CertificateError(
                f"{path}: there is no {CERTIFICATE_NAME}. Pass its path or the folder that holds it."
            )
        try:
            return cls.from_json(read_text(file))
        except CertificateError as error:
            raise CertificateError(f"{file}: {error}") from error


def checksum_of(content: dict[str, Any]) -> str:
    """Returns the sha256 of JSON-able content without its own "sha256", whatever the order of its names."""
    plain = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _content_of(text: str) -> dict[str, Any]:
    content = parse(text, "certificate")
    received = content.get("format") if isinstance(content, dict) else type(content).__name__
    if received not in (CERTIFICATE_FORMAT, FORMAT_2):
        raise CertificateError(
            f"certificate: format must be {CERTIFICATE_FORMAT!r} or {FORMAT_2!r}, received {shown(received)}. Read it "
            "with a version of this library that knows its format."
        )
    missing = {*DERIVED, "sha256"} - set(content)
    if missing:
        raise CertificateError(f"certificate: the fields {sorted(missing)} are missing. Pass it as it was saved.")
    return content


def _written(values: np.ndarray, kind: Kind) -> str:
    if kind in ("binary", AGREEMENT):
        return "".join(str(int(value)) for value in values)
    rows = values.reshape(len(values), -1).tolist()
    return ";".join(",".join(map(repr, row)) for row in rows)


def _read_scores(text: str, kind: Kind) -> np.ndarray:
    if kind in ("binary", AGREEMENT):
        if set(text) - {"0", "1"}:
            raise ValueError(f"only 0 and 1 are allowed, received {sorted(set(text) - {'0', '1'})}")
        return np.array([int(digit) for digit in text], dtype=np.float64)
    rows = np.array([[float(number) for number in row.split(",")] for row in text.split(";")])
    return rows[:, 0] if kind == "bounded" else rows
