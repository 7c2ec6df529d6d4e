"""`load_sharded`: agree on the file and the plan, then load this rank's part."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Placement, Replicate

from ...errors import NameNotFoundError, shown
from ...file import GGUFFile, Source, opened
from ...selection import Names, Progress, select
from ...storage.identity import host
from ...types import GGMLType
from ..layers import QuantizedExperts
from ..memory import numpy_dtype
from ..models import Rename, check_state, layer_for, owner_of, packable, plan_of, ties_of
from ..origins import Origin, Plan, shape_of
from ..packed import PackedTensor
from .agreement import Report, bounded, collect, require_agreement
from .files import identities, received
from .layers import ShardedEmbedding, ShardedLinear
from .parts import Placements, normalized, placements_of
from .tensors import Item, Loader

__all__ = ["Options", "device_of", "load", "load_sharded", "mesh_for"]

#: How far, in stored bytes, parts are asked for ahead of the one at hand.
_AHEAD: Final = 32 << 20


def load_sharded(
    target: nn.Module | Names,
    source: Source | None,
    mesh: DeviceMesh | None = None,
    placements: Placements | Mapping[str, Placements | None] | None = None,
    *,
    rename: Rename = None,
    names: Names = None,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    strict: bool = True,
    quantized: bool = False,
    from_rank0: bool = False,
    exchange: bool | None = None,
    ignore_times: bool = False,
    timeout: float = 120.0,
) -> Any:
    """Load this rank's part of a file: DTensors on a mesh, and plain tensors.  All ranks of the mesh call it alike.

    Parameters
    ----------
    target : torch.nn.Module, or names
        A module to fill, on any device; or the tensors to load: a name or a pattern, several of them, or None for all.
    source : path-like, URL or GGUFFile
        The file.  With `from_rank0` only the first rank of the mesh opens it; others may pass None.
    mesh : DeviceMesh, optional
        What the placements are about.  By default that of the module's DTensors (the largest), else all ranks.
    placements : Placement, sequence or mapping, optional
        ``Shard(0)`` for rows, ``Shard(1)`` or ``Shard(-1)`` for columns, ``Replicate()``; one for each dimension of the
        mesh.  A mapping has them by name (of the module's keys, if there is a module) or pattern, the first that fits
        decides.  A name that is not there is a DTensor where the module has one, laid out as that one is; otherwise it
        is a plain tensor of this rank alone, as in a stage of a pipeline.
    rename : mapping, callable or "hf", optional
        From names in the file to keys of the module, as `mmgguf.torch.load_model` takes it.
    names : str or iterable of str, optional
        For a module: only these tensors of the file.
    dtype : torch.dtype, optional
        float32, float16, bfloat16 or float64: what blocks and floats become.  None: the module's own dtypes; without
        a module what the file has, and float32 for blocks.
    progress : callable, optional
        Called with (stored bytes of this rank's parts done, in all).
    strict : bool, default True
        For a module: whether missing and unexpected names are an error.
    quantized : bool, default False
        Weights stay packed: as `PackedTensor`, or as a DTensor of bytes whose local tensor is one.  In a module they
        are in a `ShardedLinear` or `ShardedEmbedding` (where they are not cut, `QuantizedLinear` and
        `QuantizedEmbedding`), with the hooks of the layer that was there.
    from_rank0 : bool, default False
        Only the first rank of the mesh has the file: it reads each tensor once, sends each rank its part, and
        broadcasts what is replicated.  Stored blocks are sent, not numbers.
    exchange : bool, optional
        Columns.  True: every rank reads some of the rows, and the ranks exchange pieces of them, so that each reads as
        many bytes as its part has.  False: every rank reads all rows for itself, which is faster where all ranks are
        on one machine and share its page cache.  By default that decides; remote files are read together.
    ignore_times : bool, default False
        Accept copies of the file that differ in the time of their last change (or ETag), not in size or header.
    timeout : float, default 120
        Seconds after which a rank that does not answer is given up.

    Returns
    -------
    dict of str to torch.Tensor, or NamedTuple
        Tensors by name, in the file's order; for a module its ``missing_keys`` and ``unexpected_keys``.

    Raises
    ------
    ValueError
        A plan that would cut blocks (the message has the numbers of parts that do not), or that is not the same on
        all ranks.
    FileChangedError
        A rank has another file than the first; the message has its host and path.  Raised on all ranks.
    RuntimeError
        A rank failed, died or did not answer, and is named; raised on all others.  For a module, keys or shapes that
        do not fit.
    GGUFError, OSError
        This rank cannot open or read the file.

    Notes
    -----
    Before anything is read, the ranks compare size, time and digest of the header of what they opened, and the
    placements.  They exchange JSON and bytes, and nothing of it is unpickled or run; a header from the first rank is
    parsed as an untrusted file is.  (torch's own collectives of objects, which pickle, are not used.)

    On the CPU a part that is packed, or needs no conversion, is a mapping of its own bytes alone if these are whole
    rows; other parts are read a piece at a time into their final memory.

    Examples
    --------
    >>> mesh = init_device_mesh("cpu", (2,))  # under torchrun  # doctest: +SKIP
    >>> parts = load_sharded("blk.0.ffn_*", "model.gguf", mesh, Shard(0), quantized=True)  # doctest: +SKIP
    >>> parts["blk.0.ffn_up.weight"].to_local()  # doctest: +SKIP
    <PackedTensor Q4_1 (768, 576), 276480 bytes on cpu>
    """
    if dtype is not None:
        numpy_dtype(dtype)
    options = Options(rename, names, dtype, strict, quantized, from_rank0, exchange, ignore_times, timeout)
    return load(lambda f: target, source, mesh_for(target, mesh), placements, options, progress)


@dataclass(frozen=True, slots=True)
class Options:
    """The arguments of `load_sharded` that say how."""

    rename: Rename
    names: Names
    dtype: torch.dtype | None
    strict: bool
    quantized: bool
    from_rank0: bool
    exchange: bool | None
    ignore_times: bool
    timeout: float


def load(
    target: Callable[[GGUFFile], Any],
    source: Source | None,
    mesh: DeviceMesh,
    placements: Any,
    options: Options,
    progress: Progress | None,
    complete: Callable[[GGUFFile], None] | None = None,
) -> Any:
    """`load_sharded`, where the target is made when the file is known, and completed before that is closed.

    `placements` may be a function of the target.
    """
    timeout, from_rank0 = options.timeout, options.from_rank0
    with ExitStack() as stack:
        f, files, problem = None, None, None
        if not from_rank0 or _is_first(mesh):
            try:
                f = stack.enter_context(opened(source))
                files = identities(f, options.ignore_times)
            except Exception as error:
                problem = error
        if from_rank0:
            require_agreement(collect(mesh, {"error": _text(problem)}, timeout), problem)
            try:
                f = stack.enter_context(received(f, mesh, timeout))
            except Exception as error:
                problem = error
        job: _Job | None = None
        if problem is None:
            try:
                assert f is not None
                made = target(f)
                plan = placements(made) if callable(placements) else placements
                job = _Job(made, f, mesh, plan, options)
                loader = Loader(f, mesh, device=device_of(mesh), timeout=timeout, from_first=from_rank0)
                for item in job.items:
                    loader.check(item)
            except Exception as error:
                problem = error
        is_remote = f is not None and any(shard.file.is_remote for shard in f.shards)
        report: Report = {"error": _text(problem), "files": files, "at": "remote" if is_remote else host().hex()}
        if job is not None:
            report |= {"plan": _digest(job.lines), "plain": _digest(job.plain), "exchange": options.exchange}
        reports = collect(mesh, report, timeout)
        require_agreement(reports, problem)
        assert job is not None
        _require_same_plan(reports, job, mesh, timeout)
        places = {one["at"] for one in reports}
        loader.exchange = (len(places) > 1 or "remote" in places) if options.exchange is None else options.exchange
        if from_rank0 and len({one["plain"] for one in reports}) > 1:
            loader.is_staged = True
            wanted = {one["rank"]: one["names"] for one in collect(mesh, {"names": job.plain}, timeout)}
            if _is_first(mesh):
                del wanted[dist.get_rank()]
                loader.send_stages(wanted)
        with torch.no_grad():
            result = job.run(loader, progress)
        if complete is not None:
            assert f is not None
            complete(f)
        return result


def _require_same_plan(reports: list[Report], job: _Job, mesh: DeviceMesh, timeout: float) -> None:
    if len({one["exchange"] for one in reports}) > 1:
        raise ValueError("load_sharded stopped on all ranks: exchange is not the same on all of them")
    if len({one["plan"] for one in reports}) == 1:
        return
    plans = collect(mesh, {"plan": job.lines}, timeout)
    first = plans[0]
    for other in plans[1:]:
        differing = sorted(set(first["plan"]) ^ set(other["plan"]))
        if differing:
            line = differing[0]
            has, lacks = (first, other) if line in first["plan"] else (other, first)
            raise ValueError(
                f"load_sharded stopped on all ranks: rank {other['rank']} on {bounded(other['host'])} has another plan "
                f"than rank {first['rank']}: {bounded(line)} is rank {has['rank']}'s, and not rank {lacks['rank']}'s"
            )


class _Job:
    """What this rank is to load, and where it goes."""

    def __init__(
        self,
        target: nn.Module | Names,
        f: GGUFFile,
        mesh: DeviceMesh,
        placements: Any,
        options: Options,
    ) -> None:
        rename, names = options.rename, options.names
        self._file, self._mesh, self._dtype, self._quantized = f, mesh, options.dtype, options.quantized
        self._module = target if isinstance(target, nn.Module) else None
        self._targets: dict[str, torch.Tensor] = {}
        self._packable: dict[str, str] = {}
        self._ties: dict[str, list[str]] = {}
        self._result: Any = {}
        if isinstance(target, nn.Module):
            plan = self._plan_for(target, rename, names, options.strict)
        elif names is not None or rename is not None:
            raise ValueError("names and rename are for a module: pass the names as the first argument")
        else:
            plan = {name: (Origin(name),) for name in select(f, target)}
        _require_used(placements, [*plan, *self._targets])
        order = {name: number for number, name in enumerate(f)}
        keys = sorted(plan, key=lambda key: order[plan[key][0].name])
        self.items = [item for key in keys for item in self._items(key, plan[key], placements)]
        # All plain tensors first: they may be others on each rank.
        self.items.sort(key=lambda item: item.placements is not None)
        self.lines = [item.line for item in self.items if item.placements is not None]
        self.plain = [origin.name for item in self.items if item.placements is None for origin in item.origins]

    def _plan_for(self, module: nn.Module, rename: Rename, names: Names, strict: bool) -> Plan:
        plan = plan_of(module, self._file, rename, names, stacklevel=5)
        self._targets, self._ties = module.state_dict(), ties_of(module)
        shapes = {key: shape_of(self._file, origins) for key, origins in plan.items()}
        self._result = check_state(module, self._targets, shapes, self._ties, strict, True)
        plan = {key: origins for key, origins in plan.items() if key in self._targets}
        self._packable = packable(module, self._file, plan) if self._quantized else {}
        return plan

    def _items(self, key: str, origins: tuple[Origin, ...], placements: Any) -> Iterator[Item]:
        given = placements_of(placements, key)
        place, packed, dtype = None, key in self._packable, self._dtype
        chosen = None if given is None else normalized(given, self._mesh, key)
        target = self._targets.get(key)
        if self._module is None:
            packed = self._quantized and not self._file[origins[0].name].layout.is_plain
        elif chosen is None and isinstance(target, DTensor):
            place = (target.device_mesh, tuple(target.placements))
            chosen = _expanded(*place, self._mesh, key)
        if target is not None and dtype is None and target.is_floating_point():
            dtype = target.dtype
        if packed and (len(origins) > 1 or self._is_expert(key)):
            if chosen is not None:
                raise NotImplementedError(f"{shown(key)}: experts that stay packed cannot be cut; load them by name")
            for origin in origins:
                yield Item(key, (origin,), None, None, True)
            return
        yield Item(key, origins, chosen, None if packed else dtype, packed, place)

    def _is_expert(self, key: str) -> bool:
        return self._module is not None and hasattr(self._module.get_submodule(self._packable[key]), "gate_up_proj")

    def run(self, loader: Loader, progress: Progress | None) -> Any:
        total, done = sum(map(loader.nbytes, self.items)), 0
        if progress is not None:
            progress(0, total)
        state: dict[str, torch.Tensor] = {}
        experts: dict[str, list[torch.Tensor]] = {}
        for item in _read_ahead(self.items, loader):
            target = self._targets.get(item.key)
            if item.packed and self._module is not None and self._is_expert(item.key):
                experts.setdefault(item.key, []).append(self._load(loader, item))
            elif item.packed and self._module is not None:
                self._pack(item, self._load(loader, item))
            elif target is not None and not target.is_meta:
                loader.load(item, target.to_local() if isinstance(target, DTensor) else target)
            else:
                state[item.key] = self._load(loader, item)
            done += loader.nbytes(item)
            if progress is not None:
                progress(done, total)
        if self._module is None:
            return {name: state[name] for name in self._file if name in state}
        self._pack_experts(experts)
        self._assign(state)
        return self._result

    def _load(self, loader: Loader, item: Item) -> torch.Tensor:
        local = loader.load(item)
        if item.packed:
            local = PackedTensor.wrap(local, GGMLType(self._file[item.origins[0].name].type))
        return loader.distributed(item, local)

    def _pack(self, item: Item, weight: torch.Tensor) -> None:
        assert self._module is not None
        for place in (item.key, *self._ties.get(item.key, ())):
            path = place.rpartition(".")[0]
            old = self._module.get_submodule(path)
            dtype = self._dtype or old.weight.dtype
            type_ = GGMLType(self._file[item.origins[0].name].type)
            layer = _layer(old, weight, type_, dtype) if isinstance(weight, DTensor) else layer_for(old, weight, dtype)
            _move_hooks(old, layer)
            self._module.set_submodule(path, layer)

    def _pack_experts(self, experts: dict[str, list[torch.Tensor]]) -> None:
        assert self._module is not None
        for path in dict.fromkeys(self._packable[key] for key in experts):
            old = self._module.get_submodule(path)
            gate, up, down = (*experts[f"{path}.gate_up_proj"], *experts[f"{path}.down_proj"])
            self._module.set_submodule(path, QuantizedExperts(gate, up, down, old.act_fn))

    def _assign(self, state: dict[str, torch.Tensor]) -> None:
        assert self._module is not None
        if not state:
            return
        self._module.load_state_dict(state, strict=False, assign=True)
        for key in state:
            for other in self._ties.get(key, ()):
                owner, name = owner_of(self._module, other)
                setattr(owner, name, self._module.get_parameter(key))


def _layer(old: nn.Module, weight: DTensor, type_: GGMLType, dtype: torch.dtype) -> nn.Module:
    if isinstance(old, nn.Embedding):
        scale = getattr(old, "scalar_embed_scale", None)
        layer: nn.Module = ShardedEmbedding(weight, type_, dtype=dtype, scale=scale, padding_idx=old.padding_idx)
    else:
        layer = ShardedLinear(weight, type_, old.bias)
    return layer.train(old.training)


def _move_hooks(old: nn.Module, new: nn.Module) -> None:
    """Give a layer the hooks of the one that it replaces: those of tensor parallelism are made before weights are."""
    for name in (
        "_forward_hooks",
        "_forward_hooks_with_kwargs",
        "_forward_pre_hooks",
        "_forward_pre_hooks_with_kwargs",
    ):
        getattr(new, name).update(getattr(old, name))


def _read_ahead(items: Sequence[Item], loader: Loader) -> Iterator[Item]:
    ahead, asked, done = 0, 0, 0
    for number, item in enumerate(items):
        begin = ahead = max(ahead, number)
        while ahead < len(items) and asked - done < _AHEAD:
            asked += loader.nbytes(items[ahead])
            ahead += 1
        loader.ahead(items[begin:ahead])
        yield item
        done += loader.nbytes(item)


def _require_used(placements: Any, keys: list[str]) -> None:
    """Raise for a name of a plan that is nowhere: mistyped, it would be a tensor that every rank holds whole."""
    for name in placements if isinstance(placements, Mapping) else ():
        if name not in keys and not any(c in name for c in "*?["):
            raise NameNotFoundError(
                f"placements: nothing to load is called {shown(name, quoted=True)}", name, list(keys)
            )


def mesh_for(target: Any, mesh: DeviceMesh | None) -> DeviceMesh:
    if mesh is None and isinstance(target, nn.Module):
        meshes = [value.device_mesh for value in target.state_dict().values() if isinstance(value, DTensor)]
        mesh = max(meshes, key=lambda one: (one.size(), one.ndim), default=None)
    if mesh is None:
        if not dist.is_initialized():
            raise ValueError("mesh is needed: no process group is initialized (run under torchrun, make a DeviceMesh)")
        device = "cuda" if "nccl" in str(dist.get_backend_config()) and torch.cuda.is_available() else "cpu"
        mesh = init_device_mesh(device, (dist.get_world_size(),))
    if mesh.get_coordinate() is None:
        raise ValueError(f"rank {dist.get_rank()} is not in {mesh}: only its ranks call load_sharded")
    return mesh


def _expanded(own: DeviceMesh, placements: tuple[Placement, ...], mesh: DeviceMesh, key: str) -> tuple[Placement, ...]:
    """Placements on a part of a mesh, as placements on the whole: replicated over the dimensions that it lacks."""
    if own == mesh:
        return placements
    ours, whole = own.mesh_dim_names, mesh.mesh_dim_names
    if ours and whole and set(ours) <= set(whole):
        found: list[Placement] = [placements[ours.index(name)] if name in ours else Replicate() for name in whole]
        return tuple(found)
    if math.prod(own.shape) == 1:
        return tuple(Replicate() for _ in mesh.shape)
    raise ValueError(f"{shown(key)} is on {own}, which is no part of {mesh} by the names of their dimensions")


def _is_first(mesh: DeviceMesh) -> bool:
    first: int = mesh.mesh.flatten()[0].item()
    return first == int(dist.get_rank())


def device_of(mesh: DeviceMesh) -> torch.device:
    if mesh.device_type == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(mesh.device_type)


def _text(problem: BaseException | None) -> str | None:
    return None if problem is None else f"{type(problem).__name__}: {problem}"


def _digest(lines: list[str]) -> str:
    return hashlib.blake2b("\n".join(lines).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
