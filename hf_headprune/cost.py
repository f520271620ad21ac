"""Parameters, MACs, bytes and measured ms of a plan; pure arithmetic on the anatomy of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_headprune._checks import is_number, is_whole
from hf_headprune.anatomy import Price
from hf_headprune.errors import InvalidSettingError, shown
from hf_headprune.plan import check_plan

if TYPE_CHECKING:
    from hf_headprune.anatomy import Anatomy, Site
    from hf_headprune.plan import PruningPlan

LatencyTable = Mapping[str, Mapping[int, float]]  # {site: {units kept: ms}}
LATENCY_TABLE_RULE = "{site: {kept: ms}} with finite ms, as measure_latency_table returns it, or None"


@dataclass(frozen=True)
class Cost:
    """What a plan costs.

    Attributes:
        parameters: Parameters of the whole pruned model, tied ones counted once.
        size_bytes: Bytes of the tensors in its `model.safetensors`, without the file's header.
        macs: Multiply-accumulates of all attention and FFN blocks for one sequence, see `cost_of`.
        embedding_parameters: Those of the embedding tables, which pruning does not change.
        embedding_bytes: Bytes of these tables in the file.
    """

    parameters: int
    size_bytes: int
    macs: int
    embedding_parameters: int = 0
    embedding_bytes: int = 0

    @property
    def size_mb(self) -> float:
        """Size in MB, of 10^6 bytes."""
        return self.size_bytes / 1e6


def cost_of(plan: PruningPlan, anatomy: Anatomy, *, seq_len: int, target_len: int | None = None) -> Cost:
    """Counts what a plan keeps of a model, exactly.

    MACs are those of the linear maps and of the two attention products of every site. Embeddings, normalisation,
    pooler and task heads are left out: pruning does not change them.

    Args:
        plan: What is kept; made for a model of this anatomy.
        anatomy: Of the model before the plan is applied.
        seq_len: Tokens of one (source) sequence. Images have as many as the configuration says, whatever it is.
        target_len: Tokens of a decoder's sequence; equal to `seq_len` when left out. In a model that is nothing but a
            decoder they are what counts, and those of the source are what its cross-attention looks at.

    Raises:
        InvalidPlanError: The plan was made for another anatomy.
        InvalidSettingError: A length is no whole number of at least one.
    """
    target_len = seq_len if target_len is None else target_len
    if not all(is_whole(length, at_least=1) for length in (seq_len, target_len)):
        raise InvalidSettingError(
            "cost_of: lengths must be whole numbers of at least 1 token, received "
            f"{shown(seq_len)} and {shown(target_len)}."
        )
    check_plan(plan, anatomy)
    kept = {site.name: plan.kept(site.name) for site in anatomy.sites}
    cut = [site for site in anatomy.sites if len(kept[site.name]) < site.units]
    indices = sum(site.bytes_per_index * len(kept[site.name]) for site in cut)
    parameters = (site.price(site.parameters) - site.price(site.parameters, kept[site.name]) for site in cut)
    size = (site.price(site.bytes) - site.price(site.bytes, kept[site.name]) for site in cut)
    macs = (site.price(macs_price(site, seq_len, target_len), kept[site.name]) for site in anatomy.sites)
    return Cost(
        parameters=anatomy.num_parameters - sum(parameters),
        size_bytes=anatomy.num_bytes - sum(size) + indices,
        macs=sum(macs),
        embedding_parameters=anatomy.num_embedding_parameters,
        embedding_bytes=anatomy.num_embedding_bytes,
    )


def macs_price(site: Site, seq_len: int, target_len: int | None = None) -> Price:
    """Counts the multiply-accumulates that units of a site cost for one sequence; the lengths as in `cost_of`."""
    target_len = seq_len if target_len is None else target_len
    queries = target_len if site.in_decoder else seq_len
    keys = seq_len if site.kind in ("encoder", "cross") else queries
    seen = keys
    if site.tokens is not None:  # a token of a Swin sees its window; all are projected
        queries, seen = site.tokens
        keys = queries
    weights = weights_price(site)
    per_unit = queries * weights.per_unit
    if site.kind == "cross":  # all but the first module read the source
        per_unit += (keys - queries) * sum(part.rows.per_unit for part in site.parts[1:]) * site.hidden_size
    if site.is_attention:
        per_unit += 2 * queries * seen * site.unit_width
    return Price(site.uses * per_unit, site.uses * queries * weights.per_group)


def weights_price(site: Site) -> Price:
    """Counts the entries of weight matrices that leave with units; biases aside."""
    entries = sum(part.rows.per_unit for part in site.parts) + site.group_width  # of a group, as long as the stream
    own = entries
    if site.group > 1:
        own = sum(part.rows.of_heads for part in site.parts) // site.groups + site.group_width
    return Price(own // site.group * site.hidden_size, (entries - own) * site.hidden_size)


def latency_table(given: Any) -> LatencyTable | None:
    """Returns a table of latencies with its numbers of units in order, or None of anything else.

    Args:
        given: `{site: {units kept: ms}}`, see `hf_headprune.measure_latency_table`. Numbers of units may be
            texts, as JSON writes keys.
    """
    if not isinstance(given, Mapping) or not given:
        return None
    table: dict[str, dict[int, float]] = {}
    for site, measured in given.items():
        if not isinstance(measured, Mapping):
            return None
        if not all(
            (_is_decimal(kept) or is_whole(kept, at_least=0)) and is_number(ms) for kept, ms in measured.items()
        ):
            return None
        table[site] = dict(sorted((int(kept), float(ms)) for kept, ms in measured.items()))
    return table


def check_latency_table(table: LatencyTable, sites: Iterable[Site], anatomy: Anatomy, *, where: str) -> None:
    """Checks that a table speaks of all units that may be removed, and of nothing else.

    Args:
        table: From `latency_table`.
        sites: Whose units may be removed.
        anatomy: Of the model.
        where: What the table was passed as, for the message.

    Raises:
        InvalidSettingError: A site is missing or unknown, lacks the ms with none or with all of its units, or is no
            faster without them.
    """
    measure = "Measure this model with measure_latency_table."
    wanted = {site.name: site for site in sites}
    missing, unknown = wanted.keys() - table.keys(), table.keys() - {site.name for site in anatomy.sites}
    if missing or unknown:
        raise InvalidSettingError(
            f"{where}: each block whose units may go needs its ms, missing are {sorted(missing)} and unknown "
            f"{sorted(unknown)}. {measure}"
        )
    for name, site in wanted.items():
        measured = table[name]
        if any(kept > site.units for kept in measured) or not {0, site.units} <= measured.keys():
            raise InvalidSettingError(
                f"{where}: {name} needs the ms with 0 and with all {site.units} of its units kept, and none beyond, "
                f"received {sorted(measured)}. {measure}"
            )
        if not measured[0] < measured[site.units]:
            raise InvalidSettingError(
                f"{where}: {name} must be faster without any unit than with all, received {measured[0]} and "
                f"{measured[site.units]} ms. Measure again, for longer."
            )


def ms_with(kept: Any, measured: Mapping[int, float]) -> Any:
    """Returns the ms that a block takes above one without units, between the numbers measured by interpolation.

    Args:
        kept: Number of units, or an array of numbers.
        measured: Of the block, from a table.
    """
    return np.interp(kept, list(measured), list(measured.values())) - measured[0]


def latency_of(plan: PruningPlan, table: LatencyTable) -> float:
    """Returns the ms that all blocks of a table take under a plan, above those without units."""
    return float(sum(ms_with(len(plan.kept(site)), measured) for site, measured in table.items()))


def _is_decimal(key: Any) -> bool:
    """Tells whether a key is a whole number as JSON writes it."""
    return isinstance(key, str) and key.isascii() and key.isdecimal()
