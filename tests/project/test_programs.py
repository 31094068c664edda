"""What the calls of the README compile: programs and lines of StableHLO, which do not depend on the machine."""

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from manifolds.support import compilation

# A process of its own, where nothing is compiled yet. Locations are lines that start with #.
RUN = """
import json, pathlib, tempfile
import jax, numpy as np
import slowsde as ss

folder = pathlib.Path(tempfile.mkdtemp())
jax.config.update("jax_dump_ir_to", str(folder))
found = {}

def count(name, call):
    made = call()
    files = list(folder.glob("*compile.mlir"))
    # A program that does nothing asks once whether XLA knows an option.
    texts = [file.read_text() for file in files if "_lambda" not in file.name]
    found[name] = len(texts), sum(not line.startswith("#") for text in texts for line in text.splitlines())
    for file in files:
        file.unlink()
    return made

inputs = np.random.default_rng(0).choice([-1.0, 1.0], size=(6, 12))
predict = lambda w, z: z @ (w["u"] ** 2 - w["v"] ** 2)
problem = ss.LeastSquares(predict, inputs, inputs[:, 0] - inputs[:, 1], ss.LabelNoise(std=1.0))
kicked = ss.LeastSquares(predict, inputs, inputs[:, 0] - inputs[:, 1], ss.GaussianNoise(0.1))
adam, metrics = ss.adam(c=2.0, eps=1e-2), ("trace_hessian", "trace_sqrt_diag_hessian")
start = count("to_manifold", lambda: ss.to_manifold(problem, {"u": np.full(12, 0.7), "v": np.full(12, 0.5)}))
flow = lambda **more: ss.simulate(problem, adam, start, 0.1, metrics=metrics, **more)
sde = lambda **more: ss.simulate(kicked, adam, start, 0.1, paths=4, **more)
real = lambda **more: ss.run_discrete(problem, adam, start, 0.1, lr=0.01, paths=4, metrics=metrics, **more)
calls = {"simulate": flow, "run_discrete": real, "simulate, with noise along Γ": sde}
for name, call in calls.items():
    count(name, call)
again = {"save_at": 90}
for name, call in calls.items():
    count(name + " again", lambda: call(**again, **({"dt": 1.1e-4} if "noise" in name else {})))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def compiled() -> dict[str, tuple[int, int]]:
    done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("call", "programs", "lines"),
    [
        ("to_manifold", 2, 2000),
        ("simulate", 8, 4500),
        ("run_discrete", 4, 1700),
        ("simulate, with noise along Γ", 8, 4000),
    ],
)
def test_first_calls_compile_a_handful_of_small_programs(call: str, programs: int, lines: int, compiled: Any) -> None:
    print(call, compiled[call])
    assert compiled[call][0] <= programs
    assert compiled[call][1] <= lines


@pytest.mark.parametrize("call", ["simulate again", "run_discrete again", "simulate, with noise along Γ again"])
def test_another_number_of_saved_times_or_steps_compiles_nothing(call: str, compiled: Any) -> None:
    assert compiled[call] == [0, 0]


def test_a_default_is_the_same_program_named_or_not() -> None:
    traced = []

    @compilation.compiled
    def scaled(x: Any, *, by: float = 2.0) -> Any:
        traced.append(by)
        return by * x

    one = np.ones(())
    assert scaled(one) == scaled(one, by=2.0) == scaled(x=one) == 2.0
    assert traced == [2.0]
    assert scaled(one, by=3.0) == 3.0
    assert traced == [2.0, 3.0]
