"""Runs with real child processes: the protocol, its failures, and their ends."""

import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest

import fused_resnet
from fused_resnet.bench import BenchError, child, run, runner
from fused_resnet.bench.child import Child
from fused_resnet.bench.settings import Settings
from fused_resnet.bench.variants import VARIANTS

TINY = {
    "models": ["fused_resnet:resnet20"],
    "variants": ["fused", "eager"],
    "allocators": ["tuned"],
    "batch": 4,
    "image_size": 32,
    "threads": 1,
}


@pytest.fixture
def planted_worker(tmp_path, monkeypatch):
    """Replaces the variant ``fused`` of the children's worker: ``planted_worker(body of prepare(model))``."""

    def plant(body):
        script = tmp_path / "worker.py"
        script.write_text(
            "import os, time, torch\n"
            "from fused_resnet.bench import variants, worker\n"
            "def prepare(model, images):\n" + textwrap.indent(textwrap.dedent(body), "    ") + "\n"
            "variants.VARIANTS['fused'] = variants.Variant('fused', '', prepare, is_stock=False)\n"
            "worker.main()\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(Path(fused_resnet.__file__).parents[1]))
        monkeypatch.setattr(child, "WORKER", (sys.executable, str(script)))

    return plant


def job():
    return Settings(**TINY).job(TINY["models"][0], "fused")


def test_a_run(monkeypatch):
    children = []
    monkeypatch.setattr(runner, "Child", lambda *arguments: children.append(Child(*arguments)) or children[-1])
    done = []
    written = []
    result = run(**TINY, rounds=2, progress=lambda *state: done.append(state[1:]), on_rows=written.append)
    assert done == [(unit, 10) for unit in range(10)]  # (start, check, warm-up, two rounds) of two variants
    assert [row["variant"] for row in result.rows] == ["fused", "eager"]
    fused, eager = result.rows
    assert fused["saved_activation_bytes"] < eager["saved_activation_bytes"]
    assert 1e8 < fused["peak_rss_bytes"] < 1e10
    assert fused["speedup_vs_best_stock"] > 0 and eager["speedup_vs_best_stock"] is None
    assert written == [result] and not result.interrupted
    environment = result.environment
    assert environment["fused_resnet"] == fused_resnet.__version__ and environment["threads"] == 1
    assert environment["correctness"][0]["relative_errors"]["fused"]["gradients"] < 1e-1
    assert all(child._process.poll() is not None for child in children)


def test_both_allocators_take_one_process_a_variant(monkeypatch):
    started, asked, done = [], [], []
    monkeypatch.setattr(runner, "Child", lambda job, allocator: started.append(allocator) or Child(job, allocator))
    ask = Child.ask
    monkeypatch.setattr(Child, "ask", lambda self, do, **arguments: asked.append(do) or ask(self, do, **arguments))
    settings = TINY | {"variants": ["eager"], "allocators": ["default", "tuned"]}
    result = run(**settings, rounds=1, progress=lambda *state: done.append(state[1:]))
    assert started == ["default"] and done == [(unit, 6) for unit in range(6)]
    assert asked == ["warm_up", "step", "allocator", "warm_up", "step"]
    assert [row["allocator"] for row in result.rows] == ["default", "tuned"]


def test_minutes_leave_out_rounds_but_not_the_first():
    done = []
    settings = TINY | {"variants": ["eager"], "allocators": ["default", "tuned"]}
    result = run(**settings, rounds=4, minutes=1e-3, progress=lambda *state: done.append(state[1:]))
    assert [row["rounds"] for row in result.rows] == [1, 1]
    assert done == [(unit, 12) for unit in (0, 1, 2, 3, 7, 8)]  # a start, a check, then warm-up and rounds, twice
    assert [row["rounds"] for row in run(**settings, rounds=3, minutes=10).rows] == [3, 3]


def test_compilers_of_the_next_model_work_before_anything_is_timed(monkeypatch):
    monkeypatch.setitem(VARIANTS, "eager", replace(VARIANTS["eager"], compiles=True))
    events = []
    send, receive = Child.send, Child.receive

    def noted(self, do="start", **arguments):
        events.append((self.name, do))
        send(self, **arguments if do == "start" else arguments | {"do": do})

    monkeypatch.setattr(Child, "send", noted)
    monkeypatch.setattr(Child, "receive", lambda self: events.append((self.name, "reply")) or receive(self))
    models = ["fused_resnet:resnet20", "fused_resnet:resnet32"]
    result = run(**TINY | {"models": models}, rounds=1)
    assert [(row["model"], row["variant"]) for row in result.rows] == [
        (m, v) for m in models for v in ("fused", "eager")
    ]
    compilers = [f"{model}, variant eager" for model in models]
    first_check = events.index((f"{models[0]}, variant fused", "check"))
    timed = next(place for place, (_, what) in enumerate(events) if what == "warm_up")
    for name in compilers:
        assert [what for who, what in events[:timed] if who == name] == ["start", "check", "reply", "reply"]
        assert name not in {who for who, _ in events[first_check:timed]}  # nor is it at work beside a check
    started = [what for who, what in events[:timed] if who == f"{models[1]}, variant fused"]
    assert started == ["start", "reply"]  # beside the compilers too, and it waits then


def test_a_variant_that_computes_something_else_is_refused(planted_worker):
    planted_worker("return lambda images: 1.01 * model(images)")
    with pytest.raises(
        BenchError, match=r"variant fused computes something else .* logits 1.00e-02, expected at most 1.0"
    ):
        run(**TINY | {"variants": ["fused"]}, rounds=1)  # the reference runs though nobody asked for it


def test_stray_output_does_not_reach_the_protocol_and_the_environment_does(planted_worker):
    planted_worker("""
        print('{"step_ms": 0}', flush=True)
        os.system("echo from C")
        assert (os.environ["MALLOC_TOP_PAD_"], os.environ["OMP_NUM_THREADS"]) == ("268435456", "1")
        return model
    """)
    with Child(job(), "tuned") as subject:
        assert subject.receive()["threads"] == 1
        assert subject.ask("step", at_least_s=0)["step_ms"] > 0


def test_a_child_that_dies_says_its_last_words(planted_worker):
    planted_worker("""
        os.write(2, b"first line\\nsegmentation of something\\n")
        os._exit(11)
    """)
    with (
        Child(job(), "default") as subject,
        pytest.raises(BenchError, match=r"ended with code 11: .*segmentation of some"),
    ):
        subject.receive()


def test_a_child_that_raises_is_reported(planted_worker):
    planted_worker("raise ValueError('expected this, got that')")
    with (
        Child(job(), "default") as subject,
        pytest.raises(BenchError, match="fused: ValueError: expected this, got that"),
    ):
        subject.receive()


def test_a_child_ends_with_its_parent_even_in_mid_step(planted_worker, tmp_path):
    planted_worker(f"""
        open({str(tmp_path / "busy")!r}, "w").close()
        time.sleep(600)
    """)
    parent = f"""
import time, pathlib
from fused_resnet.bench import child, settings
child.WORKER = {child.WORKER!r}
subject = child.Child(settings.Job(*{tuple(job())!r}), "default")
print(subject._process.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        worker = int(process.stdout.readline())
        wait_until(lambda: (tmp_path / "busy").exists())
        process.kill()
    wait_until(lambda: not is_running(worker))


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
