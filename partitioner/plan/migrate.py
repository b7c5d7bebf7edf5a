"""Documents of earlier versions as this one writes them; what can't be read so is refused with the command that makes
it anew.

    6 -> 7    precision: the model's own data types, in which such plans were executed; the bytes of a parameter were
              the cluster's. ZeRO over all replicas
    7 -> 8    a recompute was of whole blocks, and priced with all of the last op that keeps something
    8 -> 9    ops lay along tp alone: a layout was one placement
    9 -> 10   of a device's products and attention one share of the peak each was told, whatever their shape; the
              software was a part of the cluster; no products in few bits
    10 -> 11  traits of software that no program had yet: off
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from partitioner.errors import InputError
from partitioner.hardware.device import Attention, Products
from partitioner.ops.collective_kinds import KINDS
from partitioner.plan.digests import digest_of
from partitioner.plan.json_document import plain
from partitioner.plan.recompute_ways import FULL_RECOMPUTE, NO_RECOMPUTE
from partitioner.precision import OWN, PRESETS
from partitioner.sharding.mesh_axes import TP
from partitioner.software import NOT_MEASURED, Software

VERSION = 11
UNVERSIONED = 6  # what reports without a version are of
_TILES_OF_9 = ((256, 128), (128, 256), (128, 128), (128, 64), (64, 64))
_STATE = ("weight_bytes", "gradient_bytes", "optimizer_bytes")
Data = dict[str, Any]


def migrated(data: Data, origin: str, version: object) -> Data:
    """A plan's or a report's document of ``version``, as of VERSION; raises InputError for one that it can't be."""
    if version == VERSION:
        return data
    if isinstance(version, int) and version > VERSION:
        raise InputError(f"{origin}: version {version} is newer than this program, which reads {VERSION}: update it")
    if not isinstance(version, int) or version not in _STEPS:
        raise InputError(f"{origin}: version {str(version)[:60]} is not known here{_again(data)}")
    try:
        while version != VERSION:
            data, version = _STEPS[version](data, origin), version + 1
        return data | {"version": VERSION}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{origin}: not whole, for version {version}: {error!r}{_again(data)}") from error


def _from_6(data: Data, origin: str) -> Data:
    """Where ops and the optimizer were priced as they were executed, in float32 or wider, the price holds still."""
    asked, precision = data["asked"], json.loads(json.dumps(plain(OWN)))
    decisions = data["decisions"] | {"zero_group": 0, "precision": precision}
    before, software = asked["cluster"], dict(asked["cluster"]["software"])
    if any(software.pop(key, None) is not None for key in _STATE):
        raise InputError(f"{origin}: its cluster says what a parameter holds, which a plan does now{_again(data)}")
    cluster = before | {"software": software}
    made = _on_cluster(data, cluster) | {"decisions": decisions}
    if "found" not in data:
        return made
    rows = {key: [row | {"zero_group": 0} for row in data["derived"][key]] for key in ("candidates", "front")}
    made["derived"] = data["derived"] | rows
    digests = dict(made["found"]["digests"]) | {"zero_group": digest_of(0)}
    if asked["model"]["dtype"] in ("float32", "float64"):
        digests["precision"] = digest_of(decisions["precision"])
    return made | {"found": data["found"] | {"digests": digests}}


def _from_7(data: Data, origin: str) -> Data:
    before = data["asked"]["cluster"]
    software = before["software"] | {"early_stop": False, "kept_products": 1.0}
    made, way = _on_cluster(data, before | {"software": software}), data["decisions"]["recompute"]
    if way not in (NO_RECOMPUTE, FULL_RECOMPUTE):
        raise InputError(f"{origin}: recompute {way} is another than it was{_again(data)}")
    if "blocks" not in data.get("derived", ()):
        return made
    rows = [block | {"ops": _run_again(block, way == FULL_RECOMPUTE)} for block in data["derived"]["blocks"]]
    return made | {"derived": made["derived"] | {"blocks": rows}}


def _run_again(block: Data, is_recomputed: bool) -> list[Data]:
    """Version 7 marked the collectives up to the last op that keeps something, in every plan."""
    again, rows = is_recomputed and block["is_block"], list[Data]()
    for op in block["ops"]:
        sent = [move | {"again": again and move["again"]} for move in op["collectives"]]
        rows.append(op | {"again": again, "collectives": sent})
    return rows


def _from_8(data: Data, origin: str) -> Data:
    before, refined = data["decisions"], dict[str, int]()
    after = before | {
        "refined": refined, "parameters": _laid(before["parameters"]),
        "boundaries": {name: [[word] for word in row] for name, row in before["boundaries"].items()},
    }  # fmt: skip
    made = data | {"decisions": after}
    if "found" in data:
        digests = dict(data["found"]["digests"])
        for key in ("parameters", "boundaries"):
            digests[key] = digest_of(after[key]) if digests.get(key) == digest_of(before[key]) else ""
        digests["refined"] = digest_of(refined)
        made["found"] = data["found"] | {"digests": digests, "cost": _over_tp(data["found"]["cost"])}
    if "predicted" in data:
        made["predicted"] = _over_tp(data["predicted"])
    if "derived" in data:
        derived = data["derived"]
        rows = {key: [row | {"refined": refined} for row in derived[key]] for key in ("candidates", "front")}
        blocks = [block | {"ports": [[word] for word in block["ports"]], "ops": [_op(op) for op in block["ops"]]}
                  for block in derived["blocks"]]  # fmt: skip
        made["derived"] = derived | rows | {"parameters": _laid(derived["parameters"]), "blocks": blocks}
    return made


def _from_9(data: Data, origin: str) -> Data:
    before = dict(data["asked"]["cluster"])
    device = dict(before["device"])
    share, attention = device.pop("gemm_efficiency"), device.pop("attention_efficiency")
    launch = device["launch_seconds"]
    row = Products(
        tuple(device["flops_per_second"]), share, device["memory_efficiency"], tile_power=1.0, tile_depth=128.0,
        last_wave=1.0, fixed_seconds=launch, split_seconds=1.0,
    )  # fmt: skip
    of_shape = {
        "products": [asdict(row)], "attention": asdict(Attention(attention, fixed_seconds=launch)),
        "tiles": _TILES_OF_9, "sustained": 1.0,
    }  # fmt: skip
    links = {key: before[key] | {"ring": None, "direct": None} for key in ("node", "network")}
    traits, usual = before.pop("software"), Software().as_dict()
    if strange := next((key for key in traits if key not in usual or key in NOT_MEASURED), ""):
        raise InputError(f"{origin}: unknown field asked.cluster.software.{strange[:60]}{_again(data)}")
    software = usual | traits | {"measured": any(usual[key] != value for key, value in traits.items())}
    made = _on_cluster(data, json.loads(json.dumps(before | links | {"device": device | of_shape})))
    made["asked"] = made["asked"] | {"software": software}
    was = made["decisions"]["precision"]
    precision = was | {"products": ""}
    made["decisions"] = made["decisions"] | {"precision": precision}
    if "found" in made:
        digests = made["found"]["digests"] | {"software": digest_of(software)}  # an edit of it is one of the cluster
        if digests.get("precision") == digest_of(was):
            digests["precision"] = digest_of(precision)
        made["found"] = made["found"] | {"digests": digests}
    return made


_SAID_SINCE = {"end_slots": False, "zero_groups": True, "same_recompute": False, "collectives": list(KINDS)}


def _from_10(data: Data, origin: str) -> Data:
    before = data["asked"]["software"]
    software = Software().as_dict() | before
    if software["plans"] is not None:
        software["plans"] = _SAID_SINCE | software["plans"]
    made = data | {"asked": data["asked"] | {"software": software}}
    if data.get("found", {}).get("digests", {}).get("software") == digest_of(before):
        made["found"] = data["found"] | {"digests": data["found"]["digests"] | {"software": digest_of(software)}}
    return made


def _laid(parameters: Data) -> Data:
    return {name: [word] for name, word in parameters.items()}


def _op(op: Data) -> Data:
    return _sides(op) | {"others": [_sides(other) for other in op["others"]]}


def _sides(row: Data) -> Data:
    return row | {"operands": [[word] for word in row["operands"]], "result": [row["result"]]}


def _over_tp(cost: Data) -> Data:
    """A cost whose Partial gradients are said to be summed over tp."""
    sizes = [{TP: row["partial_bytes"]} if row["partial_bytes"] else {} for row in cost["stages"]]
    pairs = zip(cost["stages"], sizes, strict=True)
    return cost | {"stages": [row | {"partial_bytes": size} for row, size in pairs]}


def _on_cluster(data: Data, cluster: Data) -> Data:
    """The document with its cluster written otherwise, of which the price holds."""
    made = data | {"asked": data["asked"] | {"cluster": cluster}}
    if data.get("found", {}).get("digests", {}).get("cluster") == digest_of(data["asked"]["cluster"]):
        made["found"] = data["found"] | {"digests": data["found"]["digests"] | {"cluster": digest_of(cluster)}}
    return made


_STEPS: Mapping[int, Callable[[Data, str], Data]] = {6: _from_6, 7: _from_7, 8: _from_8, 9: _from_9, 10: _from_10}


def _again(data: Data) -> str:
    """The command that plans anew what a document was made for, as far as it tells."""
    try:
        asked, cluster = data["asked"], data["asked"]["cluster"]
        words = ["partitioner", "plan", asked["model"]["entry"], "--cluster", cluster["name"]]
        words += ["--nodes", cluster["nodes"]] if cluster["nodes"] > 1 else ["--devices", cluster["node_devices"]]
        words += ["--global-batch", asked["global_batch"]]
        words += ["--seq", asked["model"]["seq"]] if asked["model"].get("seq") else []
        words += [w for key, value in asked["model"].get("settings", {}).items() for w in ("--set", f"{key}={value}")]
        words += _precision_words(data["decisions"].get("precision", plain(OWN)))
        words += [w for key, value in asked["pins"].items() for w in ("--pin", f"{key}={value}")]
        return f"; plan again: {shlex.join(map(str, words))}"
    except (AttributeError, KeyError, StopIteration, TypeError):
        return ": plan again with partitioner plan"


def _precision_words(precision: Mapping[str, Any]) -> list[str]:
    """The options that ask for it; of version 6, which has none, the model's own."""
    kept = {key: value for key, value in precision.items() if key != "float32"}
    name = next(name for name, row in PRESETS.items() if kept.items() <= json.loads(json.dumps(plain(row))).items())
    return ["--precision", name, *(w for pattern in precision.get("float32", ()) for w in ("--float32", pattern))]
