"""Trainings whose options Ray Tune chooses: grids, random draws, Optuna; bad ones are stopped early by ASHA.

Each trial does on its node what `offramp.engine.local` does for one job, and reports the epochs that the run records.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator

from offramp.engine import fetched, local
from offramp.engine.local import Job, Unwatched, Watcher
from offramp.engine.ray import Cluster, StartedFrom, calling, nothing

EpochScore = Callable[[str, dict[str, Any]], float]
"""(name of the point, record of an epoch) -> what is maximised; a function that can be pickled."""
FOLDER = "tune"
"""Where Tune keeps its state, in the folder of the sweep."""
WAIT = 7 * 24 * 3600.0
"""Seconds that a trial waits for another one of the same options."""
LOST_NODES = 20
"""How many lost nodes a trial survives."""
WORST = -1.0
"""The score of a trial that failed."""


@dataclass(frozen=True)
class Search:
    """How points are chosen.

    Attributes:
        grid: values of options by name.
        samples: points to draw; None for all.
        optuna: whether Optuna chooses; otherwise they are drawn at random.
        asha: whether trials that are behind are stopped, by epochs.
        epochs: of a whole training.
        seed: of the draws.
    """

    grid: Mapping[str, Sequence[Any]]
    samples: int | None
    optuna: bool
    asha: bool
    epochs: int
    seed: int


@dataclass(frozen=True)
class Trial:
    """How a trial went.

    Attributes:
        point: its name.
        failure: why it failed, if it did.
        complete: whether its run was trained to the end and evaluated.
        ended: whether Tune is done with it.
    """

    point: str
    failure: str | None
    complete: bool
    ended: bool

    @property
    def stopped(self) -> bool:
        """Whether the scheduler ended it early."""
        return self.ended and self.failure is None and not self.complete


@dataclass(frozen=True)
class _Work:
    """What a trial needs on its node."""

    origin: StartedFrom
    jobs: dict[str, Job]
    score: EpochScore
    epochs: int
    receiver: Any


def name_of(values: Mapping[str, Any]) -> str:
    """The name of a point: `lr=0.1,net=resnet18`, in the order of the options."""
    return ",".join(f"{key}={value}" for key, value in values.items())


def run(
    cluster: Cluster,
    jobs: Mapping[str, Job],
    search: Search,
    score: EpochScore,
    folder: Path,
    at_once: int,
    watcher: Watcher,
) -> list[Trial]:
    """Try points until the search ends, or Ctrl-C; the same call goes on.

    Args:
        jobs: what to run for each point, by its name; without commands, its run has finished before.
        folder: of the sweep; all nodes see it, unless the cluster fetches runs.
        at_once: trials on one node at the same time.
    """
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    cluster.start_receiver()
    sent = {name: replace(job, done=nothing) for name, job in jobs.items()}
    work = _Work(cluster.origin, sent, score, search.epochs, cluster.receiver)
    needs_gpu = any(job.needs_gpu for job in jobs.values())
    resources = {"cpu": cluster.share(at_once), "gpu": cluster.gpu_share(at_once) if needs_gpu else 0}
    continues = any((folder / FOLDER).glob("experiment_state-*.json"))
    watching = _Watching(jobs, watcher, cluster.receiver, _ended(folder) if continues else set())
    analysis = tune.run(
        tune.with_resources(tune.with_parameters(_train, work=work), resources),
        name=FOLDER,
        metric="score",
        mode="max",
        config=_space(search),
        num_samples=search.samples or 1,
        search_alg=_searcher(search),
        scheduler=ASHAScheduler(time_attr="epoch", max_t=search.epochs, grace_period=1) if search.asha else None,
        storage_path=str(folder.absolute()),
        resume="AUTO+ERRORED" if continues else None,
        max_failures=LOST_NODES,
        raise_on_failed_trial=False,
        callbacks=[watching],
        verbose=0,
    )
    return [_trial(trial, trial.trial_id in watching.ended) for trial in analysis.trials]


def _ended(folder: Path) -> set[str]:
    """The trials that had ended when the sweep was left: if all had, Tune does not take a step any more."""
    left = tune.ExperimentAnalysis(str(folder.absolute() / FOLDER))
    return {trial.trial_id for trial in left.trials if _over(trial)}


def _over(trial: Any) -> bool:
    return trial.status in ("TERMINATED", "ERROR")


def _space(search: Search) -> dict[str, Any]:
    make = tune.grid_search if search.samples is None else tune.choice
    return {key: make(list(values)) for key, values in search.grid.items()}


def _searcher(search: Search) -> Any:
    if search.optuna:
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        return OptunaSearch(metric="score", mode="max", seed=search.seed)
    return BasicVariantGenerator(random_state=search.seed)


def _train(values: dict[str, Any], work: _Work) -> None:
    """On a node: train and evaluate one point, unless that was done before, and report its epochs."""
    work.origin.enter()
    name = name_of(values)
    job = work.jobs[name]
    with _place(job, work.receiver) as (folder, run_job):
        epochs = _Epochs(folder / "metrics.jsonl", partial(work.score, name), work.epochs)
        if job.commands and not run_job(epochs):
            raise RuntimeError("it was stopped on its node; the same command continues")
        epochs.report(whole=job.failure is None)
    if epochs.reported and not job.failure:
        epochs.complete()
    else:
        failure = job.failure or f"{job.folder} has no record of an epoch"
        tune.report({"epoch": epochs.reported, "score": WORST, "failure": failure})


@contextmanager
def _place(job: Job, receiver: Any) -> Iterator[tuple[Path, Callable[[Watcher], bool]]]:
    """The folder of a run on this node, and what runs the job there; trials of the same options wait for each other."""
    if receiver is None:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with local.locked_folder(job.log.with_suffix(".lock"), WAIT, print) as lock:
            yield job.folder, lambda watcher: local.run([job], 1, watcher, lock.fileno())
        return
    call = calling(receiver)
    while not call("hold", str(job.folder), tune.get_context().get_trial_id()):
        time.sleep(fetched.EVERY)
    with fetched.on_node(job, call) as there:
        yield there.folder, lambda watcher: fetched.work(job, there, call, watcher)


class _Epochs(Unwatched):
    """Reports the epochs that a run records; the last one when the run has ended, so that it is not stopped by then."""

    def __init__(self, path: Path, score: Callable[[dict[str, Any]], float], epochs: int) -> None:
        self.path, self.score, self.epochs = path, score, epochs
        self.reported = self.place = 0
        self.last = WORST

    def running(self, job: Job) -> None:
        """Report what is new."""
        self.report(whole=False)

    def report(self, whole: bool) -> None:
        """Report epochs of which nothing was reported yet.

        Args:
            whole: the last one, too: the run has ended well.
        """
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            file.seek(self.place)
            for line in file:
                record = json.loads(line) if line.startswith(b'{"kind": "epoch"') and line.endswith(b"\n") else None
                last = record is not None and record["epoch"] + 1 == self.epochs
                if not line.endswith(b"\n") or (last and not whole):
                    return
                self.place += len(line)
                if record is not None and record["epoch"] >= self.reported:
                    self.reported, self.last = record["epoch"] + 1, self.score(record)
                    tune.report({"epoch": self.reported, "score": self.last, "complete": last})

    def complete(self) -> None:
        """Report that the run has ended, if that was before the last epoch, as `patience` lets it end."""
        if self.reported < self.epochs:
            tune.report({"epoch": self.reported, "score": self.last, "complete": True})


class _Watching(tune.Callback):  # type: ignore[misc]
    """Reports the progress of trials to a watcher; Tune accepts subclasses of its own class only."""

    def __init__(self, jobs: Mapping[str, Job], watcher: Watcher, receiver: Any, ended: set[str]) -> None:
        self.jobs, self.watcher, self.receiver = jobs, watcher, receiver
        self.running: dict[str, Job] = {}
        self.ended = ended

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial began."""
        job = self.jobs[name_of(trial.config)]
        if job.commands and trial.trial_id not in self.running:
            self.running[trial.trial_id] = job
            self.watcher.started(job)

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Called again and again."""
        for job in self.running.values():
            self.watcher.running(job)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Remember which trials have ended: after Ctrl-C, Tune calls all terminated."""
        self.ended = {trial.trial_id for trial in trials if _over(trial)}

    def _release(self, trial: Any) -> None:
        """Let another trial of the same options begin."""
        if self.receiver is not None:
            self.receiver.release.remote(str(self.jobs[name_of(trial.config)].folder), trial.trial_id)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The node of a trial was lost; it will start again."""
        self._release(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial failed for good: its node was lost too often."""
        self._release(trial)
        job = self.running.pop(trial.trial_id, None)
        if job is not None:
            job.failure = _reason(trial)
            self.watcher.ended(job)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial ended, or was stopped."""
        self._release(trial)
        job = self.running.pop(trial.trial_id, None)
        if job is None:
            return
        ended = _trial(trial, ended=True)
        job.failure, job.stopped = ended.failure, ended.stopped
        if ended.failure is None and ended.complete:
            job.done()
        self.watcher.ended(job)


def _trial(trial: Any, ended: bool) -> Trial:
    result = trial.last_result or {}
    failure = result.get("failure") or (_reason(trial) if trial.status == "ERROR" else None)
    return Trial(name_of(trial.config), failure, bool(result.get("complete")), ended)


def _reason(trial: Any) -> str:
    path = trial.error_file
    lines = Path(path).read_text().strip().splitlines() if path and Path(path).is_file() else []
    return lines[-1] if lines else "it failed"
