"""Many paths at once: in blocks of one size, over the devices of this process and over the processes of a program.

A path's numbers are to depend on its key alone. Its noise does, by `fold_in(key, index)`; its rounding does if every
path is computed by the same code at the same place of a batch. So paths 0 ... B−1 are one block, vectorized over, paths
B ... 2B−1 the next, the last block is filled up, and B follows from the problem and the kind of device, never from the
number of paths, devices or processes. Each device runs the same program on blocks of its own; nothing is summed across.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree

from manifolds.metrics.abstract import AbstractMetric
from manifolds.metrics.diagonal import Identity
from manifolds.support.blocks import batches_well
from manifolds.support.compilation import compiled, form_of

from .slow_sde import SlowSDE

AXIS = "devices"
# Paths in a block, at most, and how many numbers their noise factors B (p·r a path) may hold before there are fewer
# than 8 paths. On two cores 8 paths of a small problem cost as much as one or two, and more than 64 save little; in a
# large problem what fills up a block is not free. An accelerator wants more. (Only CPUs were measured.)
MOST, NUMBERS = {"cpu": 64}, {"cpu": (2**17, 2**24)}
MOST_ELSEWHERE, NUMBERS_ELSEWHERE = 1024, (2**24, 2**27)
# Eigenpairs and factors gain little from vectorization where matrices have more than a few rows: batches with batch ×
# rows² up to this cost at most 15 % more than larger ones. They are safe as well: XLA splits large batches among its
# threads on a CPU, and two such calls can wait for each other for ever (seen with 64 matrices of 24 rows and with 32 of
# 32, never with 16 of 32 or 64 of 16, nor with single matrices of 100 or 200 rows on up to eight devices at once).
BATCHED = 1024
POINTS = 16  # blocks of single points that one call computes: calls cost about 0.3 ms


def map_paths(
    function: Callable[[Any, Any], PyTree], shared: PyTree, arguments: PyTree, size: int, *, depth: int = 1
) -> PyTree:
    """function(shared, argument) for every argument along the leading axis of `arguments`, stacked in order.

    Args:
        function: of one path, hashable (a function of a module, not a fresh lambda, which would be compiled anew).
        shared: what all paths share, a pytree that every device gets a copy of.
        arguments: pytree of arrays with leading axis n.
        size: paths in a block, see `block_size`; 1 for one after the other, without vectorization.
        depth: blocks that a device computes in one call.

    Returns: the results as NumPy arrays with leading axis n; in a program of several processes, which all must call
        this alike, every process gets all of them.

    Example:
        >>> map_paths(lambda scale, x: scale * x, 2.0, np.arange(5.0), size=8)
        array([0., 2., 4., 6., 8.])
    """
    arguments = jax.tree.map(np.asarray, arguments)
    count = jax.tree.leaves(arguments)[0].shape[0]
    mine = blocks_of_process(-(-count // size))
    index = np.minimum(mine[:, None] * size + np.arange(size), count - 1)
    # The last block is filled up with copies of the last path: a shorter one would be another program with other
    # rounding. (One path of a small problem so costs a whole block.)
    found = _on_devices(function, shared, jax.tree.map(lambda leaf: leaf[index], arguments), depth)
    return gathered(jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found), count)


def blocks_of_process(blocks: int) -> np.ndarray:
    """The numbers of the blocks that this process computes, as many as any other does."""
    # Whole blocks go to processes: a block cut in two would round differently.
    each = -(-blocks // jax.process_count())
    # Where blocks are fewer than places for them, some processes compute the last one once more: shapes stay alike.
    return np.minimum(jax.process_index() * each + np.arange(each), blocks - 1)


def gathered(found: PyTree, count: int) -> PyTree:
    """The first `count` paths of all processes, of leaves (paths of this process, ...)."""
    if jax.process_count() > 1:
        found = multihost_utils.process_allgather(found)
        found = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[2:]), found)
    # Nothing is summed here: sums over paths, whose order could matter, are NumPy's, of gathered results.
    return jax.tree.map(lambda leaf: leaf[:count], found)


def map_points(function: Callable[[Any, Any], PyTree], shared: PyTree, points: PyTree, size: int) -> PyTree:
    """`map_paths` of single points of paths: leaves of points and results have the leading axes (paths, T)."""
    shape = jax.tree.leaves(points)[0].shape[:2]
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), points)
    found = map_paths(function, shared, flat, size, depth=POINTS)
    return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), found)


def block_size(sde: SlowSDE, x: Array, *, eigenpairs: bool) -> int:
    """Paths in a block, a power of two; 1 where large eigenpairs may not be batched (`manifolds.support.blocks`)."""
    platform = devices_here()[0].platform
    factor, spectrum, metric = _sizes(sde, x)
    # By the size of B, p·r, the largest array of a path. A power of two, so that few sizes of programs exist.
    many, few = (bound // factor.size for bound in NUMBERS.get(platform, NUMBERS_ELSEWHERE))
    size = _power_of_two(min(max(many, 8), few, MOST.get(platform, MOST_ELSEWHERE)))
    # The matrices of a metric, as Shampoo's, have eigenpairs as well.
    rows = [leaf.shape[-1] for leaf in jax.tree.leaves(metric) if leaf.ndim > 1] + [spectrum.shape[0]] * eigenpairs
    if platform != "cpu" or not rows:
        return size
    return min(size, _power_of_two(BATCHED // max(rows) ** 2)) if batches_well(max(rows)) else 1


def points_in_block(sde: SlowSDE, x: Array) -> int:
    """As `block_size`, for what is computed once at a point; small, as it may hold a stored Jacobian or Hessian."""
    return min(8, block_size(sde, x, eigenpairs=True))


def points_side_by_side(sde: SlowSDE, x: Array) -> int:
    """As `block_size`, for many points with a few eigenpairs each and much other work: more of them, where safe."""
    few = block_size(sde, x, eigenpairs=True)
    # Matrices that may be batched have up to 16 rows, and 64 of those never waited for each other.
    return few if few == 1 else max(few, min(64, block_size(sde, x, eigenpairs=False)))


@form_of
def _sizes(sde: SlowSDE, x: Array) -> tuple[Any, Any, AbstractMetric | None]:
    if sde.problem.noise is None:  # points of a run without noise
        return x, sde.loss.normal_space(x, Identity()).values, None
    return sde.factor(x), sde.loss.normal_space(x, Identity()).values, sde.metric(sde.equilibrium(x))


def _power_of_two(most: int) -> int:
    return 1 << (max(most, 1).bit_length() - 1)


def devices_here() -> list[Any]:
    """The devices of this process, or the one that `jax.default_device` asks for."""
    # A mesh names its devices, so that `jax.default_device` has to be asked for here.
    chosen = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    if chosen is None or isinstance(chosen, str):
        return jax.local_devices(backend=chosen)
    return [chosen]


def _on_devices(function: Callable[[Any, Any], PyTree], shared: PyTree, arguments: PyTree, depth: int) -> PyTree:
    """Blocks of arguments, leaves (blocks, size, ...), over the devices of this process; results in the same order."""
    blocks = jax.tree.leaves(arguments)[0].shape[0]
    devices = devices_here()[:blocks]
    each = -(-blocks // len(devices))
    rounds = -(-each // depth)
    mesh, shared = spread(shared, devices)
    first = each * np.arange(len(devices))  # device d computes the blocks from first[d] on, `depth` in each round
    many = np.clip(blocks - first, 0, each)
    compute = _points if depth > 1 else paths_on_devices
    results = []
    for number in range(rounds):
        slots = number * depth + np.arange(depth)
        index = np.minimum(first[:, None] + slots, blocks - 1)
        active = np.clip(many - number * depth, 0, depth).astype(np.int32)
        here = jax.tree.map(lambda leaf, index=index: leaf[index], arguments)
        results.append(compute(function, shared, here, active, mesh))
    block = np.arange(blocks)
    device, slot = block // each, block % each
    at = slot // depth, device, slot % depth
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves])[at], *results)


def spread(shared: PyTree, devices: list[Any]) -> tuple[Mesh, PyTree]:
    """The mesh of these devices, and what all paths share, copied to each of them."""
    # Made by hand: the axes of `jax.make_mesh` are Explicit ones, with which Diffrax fails.
    mesh = Mesh(np.array(devices), (AXIS,))
    arrays, rest = eqx.partition(shared, eqx.is_array)
    # Once, not with every round.
    return mesh, eqx.combine(jax.device_put(arrays, NamedSharding(mesh, P())), rest)


def _round(
    function: Callable[[Any, Any], PyTree], shared: PyTree, arguments: PyTree, active: Any, mesh: Mesh
) -> PyTree:
    """`active` blocks on each device: leaves (devices, depth, size, ...), zero where a block is not active."""
    arrays, rest = eqx.partition(shared, eqx.is_array)

    # Diffrax's loops do not pass the check of what varies over the mesh, hence check_vma=False.
    @partial(jax.shard_map, mesh=mesh, in_specs=(P(), P(AXIS), P(AXIS)), out_specs=P(AXIS), check_vma=False)
    def on_device(arrays: PyTree, arguments: PyTree, active: Array) -> PyTree:
        arguments, active = jax.tree.map(lambda leaf: jnp.squeeze(leaf, 0), (arguments, active))

        def path(argument: PyTree) -> PyTree:
            return function(eqx.combine(arrays, rest), argument)

        # Traced once, for its shapes and for the loop.
        @jax.jit
        def block(arguments: PyTree) -> PyTree:
            # A batch of one would be vectorized all the same, LAPACK calls among it.
            if jax.tree.leaves(arguments)[0].shape[0] > 1:
                return jax.vmap(path)(arguments)
            return jax.tree.map(lambda leaf: leaf[None], path(jax.tree.map(lambda leaf: leaf[0], arguments)))

        def put(slot: Array, results: PyTree) -> PyTree:
            # Not by brackets, which make a dozen lines each of what is known of a slot.
            at = {"index": slot, "axis": 0, "allow_negative_indices": False}
            rows = jax.tree.map(partial(jax.lax.dynamic_index_in_dim, **at, keepdims=False), arguments)
            return jax.tree.map(partial(jax.lax.dynamic_update_index_in_dim, **at), results, block(rows))

        depth = jax.tree.leaves(arguments)[0].shape[0]
        shapes = jax.eval_shape(block, jax.tree.map(lambda leaf: leaf[0], arguments))
        results = jax.tree.map(lambda leaf: jnp.zeros((depth, *leaf.shape), leaf.dtype), shapes)
        # A number of turns that the compiler does not know: it may not turn the loop into other code.
        return jax.tree.map(lambda leaf: leaf[None], jax.lax.fori_loop(0, active, put, results))

    return on_device(arrays, arguments, active)


# Where XLA's older code fuses, rounding depends on what stands beside: on a path with 64 steps a step rounds otherwise
# than on one with 32, and a run in chunks is not the run. Points are computed in batches of one shape.
paths_on_devices, _points = eqx.filter_jit(_round), compiled(_round)
