"""Judges a table: every measure and baseline against fine-tuning, on every task."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Hashable, Mapping, Sequence

from rankckpt_jax.errors import InputError, some
from rankckpt_jax.evaluation import batch
from rankckpt_jax.evaluation.comparison import compare_over_tasks, holm
from rankckpt_jax.evaluation.dropping import DroppingPoint, dropping_curve
from rankckpt_jax.evaluation.fidelity import gap_fidelity
from rankckpt_jax.evaluation.intervals import (
    UNDEFINED,
    interval_over_tasks,
    wilson_interval,
)
from rankckpt_jax.evaluation.judgment import (
    FIGURES,
    Figure,
    Judgment,
    MeasureJudgment,
    TaskAgreement,
    Versus,
    Within,
    order,
)
from rankckpt_jax.evaluation.noise_ceiling import noise_ceiling
from rankckpt_jax.evaluation.null_distribution import (
    kendall_null_deviation,
    p_value_over_tasks,
    random_ranking,
)
from rankckpt_jax.evaluation.pairs import (
    resolvable_kendall,
    size_groups,
    within_groups,
)
from rankckpt_jax.evaluation.regret import regret
from rankckpt_jax.evaluation.score_lists import (
    ELSEWHERE,
    ByName,
    Pool,
    ScoreList,
    common,
    mean,
)
from rankckpt_jax.evaluation.scores import score_ranking
from rankckpt_jax.evaluation.static_list import (
    beyond_static,
    rank_dispersion,
)
from rankckpt_jax.evaluation.table import STATICS, Table

_SMOOTH = {
    "kendall": batch.kendall,
    "spearman": batch.spearman,
    "pearson": batch.pearson,
}
"""The figures whose jackknife over checkpoints is sound."""

_SIZES = ("small", "medium", "large")
"""Names of the tertiles by number of parameters."""


def judge(table: Table) -> Judgment:
    r"""Judge every measure of a table, with the baselines that the table allows.

    Accuracies are means over the fine-tuning runs. A measure without scores for some
    checkpoints is judged on the others. The baselines are the columns of `STATICS` and,
    with at least two tasks, `ELSEWHERE`.

    Example:
      >>> from rankckpt_jax.evaluation import parse_table
      >>> lines = ["task,checkpoint,accuracy,nleep", "pets,a,0.9,-1", "pets,b,0.8,-2"]
      >>> judge(parse_table("\n".join(lines))).measure("nleep").kendall
      1.0

    Args:
      table: The table, from `read_table` or `parse_table`.

    Raises:
      InputError: No measure has scores for two checkpoints of one task.
    """
    return _Judge(table).judge()


class _Judge(Pool):
    """Judges the lists of a pool."""

    def judge(self) -> Judgment:
        """Return the judgment."""
        lists = [self.score_list(name) for name in self.table.measures]
        measures = [scores for scores in lists if scores.by_task]
        if not measures:
            raise InputError(
                "No measure can be judged",
                where=self.table.name,
                expected="a measure with scores for two checkpoints of one task",
                found=f"none of {some(self.table.measures)}",
            )
        baselines = self.baselines()
        taus = {
            scores.name: mean(self.taus(scores.by_task))
            for scores in (*measures, *baselines)
        }
        best_baseline = max(
            (b for b in baselines if not math.isnan(taus[b.name])),
            key=lambda b: taus[b.name],
            default=None,
        )
        folded = {scores.name.casefold(): scores.name for scores in measures}
        default = folded.get("nleep", measures[0].name)
        known = [m.name for m in measures if not math.isnan(taus[m.name])]
        by_tau = sorted(known, key=lambda name: -taus[name])
        drawn = {default, *by_tau[:1], *by_tau[-1:]}
        criterion = self._criterion(baselines)
        # Each measure is compared with the baseline named first, then with the default.
        others = [best_baseline] if best_baseline else []
        others += [m for m in measures if m.name == default]
        rows = [
            self._judge_measure(
                scores,
                measures,
                others,
                best_baseline,
                criterion if scores.name in drawn else None,
            )
            for scores in (*measures, *baselines)
        ]
        rows = _adjust(rows)
        return Judgment(
            table=self.table,
            measures=tuple(sorted((r for r in rows if not r.is_baseline), key=order)),
            baselines=tuple(sorted((r for r in rows if r.is_baseline), key=order)),
            default=default,
            best_baseline=best_baseline.name if best_baseline else "",
            criterion=criterion.name if criterion else "",
            ceilings={
                task: noise_ceiling(runs)
                for task, runs in self.runs.items()
                if len(runs) > 1
            },
            dispersion=rank_dispersion(self.accuracies),
            deviation={
                task: kendall_null_deviation(len(known))
                for task, known in self.accuracies.items()
            },
        )

    def _criterion(self, baselines: Sequence[ScoreList]) -> ScoreList | None:
        """Return the baseline that tells easy checkpoints from hard ones."""
        known = {baseline.name: baseline for baseline in baselines}
        for name in (STATICS["source_accuracy"], ELSEWHERE, STATICS["parameters"]):
            if name in known:
                return known[name]
        return None

    def _judge_measure(
        self,
        scores: ScoreList,
        measures: Sequence[ScoreList],
        others: Sequence[ScoreList],
        static: ScoreList | None,
        criterion: ScoreList | None,
    ) -> MeasureJudgment:
        by_task = {
            task: self._judge_task(task, scores, static, criterion)
            for task in scores.by_task
        }
        others_taus = [self.taus(m.by_task) for m in measures if m.name != scores.name]
        num_won = sum(
            all(
                not taus.get(task, math.nan) > agreement.values["kendall"]
                for taus in others_taus
            )
            for task, agreement in by_task.items()
            if not math.isnan(agreement.values["kendall"])
        )
        accuracies = {task: self.select(task, s) for task, s in scores.by_task.items()}
        in_families = math.nan
        if self.families:
            in_families = p_value_over_tasks(scores.by_task, accuracies, self.families)
        return MeasureJudgment(
            name=scores.name,
            is_baseline=scores.is_baseline,
            by_task=by_task,
            figures={key: self._figure(key, scores, by_task) for key in FIGURES},
            num_won=num_won,
            p_value=p_value_over_tasks(scores.by_task, accuracies),
            p_value_in_families=in_families,
            partial=mean([agreement.partial for agreement in by_task.values()]),
            versus=tuple(
                self._versus(scores, other)
                for other in others
                if other.name != scores.name
            ),
            within=self._within(scores),
            without_family={
                family: self._tau_without(scores, family)
                for family in self.table.families
            },
            seconds=scores.seconds,
        )

    def _tau_without(self, scores: ScoreList, family: str) -> float:
        """Return the mean of Kendall's tau without the checkpoints of a family."""
        left = {
            task: {n: s for n, s in known.items() if self.families[n] != family}
            for task, known in scores.by_task.items()
        }
        return mean(self.taus(left))

    def _judge_task(
        self,
        task: str,
        of_measure: ScoreList,
        static: ScoreList | None,
        criterion: ScoreList | None,
    ) -> TaskAgreement:
        scores = of_measure.by_task[task]
        accuracies = self.select(task, scores)
        values = score_ranking(scores, accuracies)
        random = random_ranking(accuracies)
        values["gap_fidelity"] = gap_fidelity(scores, accuracies)
        random["gap_fidelity"] = 0.0 * values["gap_fidelity"]
        runs = [{name: run[name] for name in scores} for run in self.runs[task]]
        for k in batch.DEPTHS:
            judged = regret(scores, accuracies, k)
            values[f"regret@{k}"], random[f"regret@{k}"] = judged.value, judged.random
            again = [
                regret(scores, one, k, remeasured=other)
                for one, other in itertools.permutations(runs, 2)
            ]
            for result, field in (values, "value"), (random, "random"):
                result[f"regret@{k}_other_run"] = mean(
                    [getattr(one, field) for one in again]
                )
        num_test = self.tasks[task].num_test
        resolvable = None
        if num_test is not None:
            tau, num_pairs, _ = resolvable_kendall(scores, accuracies, num_test)
            resolvable = tau, num_pairs
        partial = math.nan
        if static is not None and static.name != of_measure.name:
            listed = common(scores, static.by_task.get(task, {}))
            if len(listed) > 1:
                s, z = ([x[n] for n in listed] for x in (scores, static.by_task[task]))
                a = [accuracies[name] for name in listed]
                partial = beyond_static(s, a, z).partial
        interval = self.interval(batch.kendall, [(1.0, {task: scores})])
        return TaskAgreement(
            n=len(scores),
            num_families=len({self.families[n] for n in scores})
            if self.families
            else 0,
            values={key: values[key] for key in FIGURES},
            random={key: random[key] for key in FIGURES},
            interval=interval,
            resolvable=resolvable,
            partial=partial,
            dropping=self._dropping(task, scores, static, criterion),
        )

    def _dropping(
        self,
        task: str,
        scores: ByName,
        static: ScoreList | None,
        criterion: ScoreList | None,
    ) -> tuple[DroppingPoint, ...]:
        if criterion is None or static is None:
            return ()
        lists = [x.by_task.get(task, {}) for x in (criterion, static)]
        names = common(scores, *lists)
        by, z = ([x[name] for name in names] for x in lists)
        return dropping_curve(
            [scores[name] for name in names],
            [self.accuracies[task][name] for name in names],
            by,
            static=z,
            runs=[[run[name] for name in names] for run in self.runs[task]],
        )

    def _figure(
        self, key: str, scores: ScoreList, by_task: Mapping[str, TaskAgreement]
    ) -> Figure:
        values = {task: agreement.values[key] for task, agreement in by_task.items()}
        known = [value for value in values.values() if not math.isnan(value)]
        pool = UNDEFINED
        if key in _SMOOTH:
            pool = self.interval(_SMOOTH[key], [(1.0, scores.by_task)])
        if key.startswith("recall"):
            over_tasks = wilson_interval(sum(known), len(known))
            if len(known) < 2:
                over_tasks = UNDEFINED
        else:
            over_tasks = interval_over_tasks(values)
        random = mean([agreement.random[key] for agreement in by_task.values()])
        return Figure(mean(known), pool, over_tasks, random)

    def _versus(self, scores: ScoreList, other: ScoreList) -> Versus:
        one, two = self._on_common(scores.by_task, other.by_task)
        first, second = self.taus(one), self.taus(two)
        return Versus(
            other.name,
            compare_over_tasks(first, second),
            self.interval(batch.kendall, [(1.0, one), (-1.0, two)], bounds=(-2.0, 2.0)),
            interval_over_tasks({task: first[task] - second[task] for task in first}),
        )

    def _on_common(self, *lists: Mapping[str, ByName]) -> list[dict[str, ByName]]:
        """Return lists on the tasks and checkpoints that all have."""
        names = {
            task: common(*(by_task.get(task, {}) for by_task in lists))
            for task in self.tasks
        }
        return [
            {
                task: {n: by_task[task][n] for n in names[task]}
                for task in self.tasks
                if len(names[task]) > 1
            }
            for by_task in lists
        ]

    def _within(self, scores: ScoreList) -> dict[str, Within]:
        checkpoints = self.table.checkpoints
        sizes = {
            name: c.statics["parameters"]
            for name, c in checkpoints.items()
            if "parameters" in c.statics
        }
        kinds: dict[str, Mapping[str, Hashable]] = {
            "size": {n: _SIZES[i] for n, i in size_groups(sizes).items()},
            "family": {n: c.family for n, c in checkpoints.items() if c.family},
            "group": {n: c.group for n, c in checkpoints.items() if c.group},
        }
        result = {}
        for kind, groups in kinds.items():
            if len(set(groups.values())) < 2:
                continue
            judged = []
            for task, known in scores.by_task.items():
                names = [n for n in known if n in groups]
                if len(names) > 1:
                    judged.append(
                        within_groups(
                            [known[n] for n in names],
                            [self.accuracies[task][n] for n in names],
                            [groups[n] for n in names],
                        )
                    )
            # Size groups have an order; the others are listed by name.
            labels = (
                _SIZES if kind == "size" else sorted(map(str, set(groups.values())))
            )
            by_group = {
                str(label): mean(
                    [j.by_group[label][1] for j in judged if label in j.by_group]
                )
                for label in labels
            }
            result[kind] = Within(
                mean([j.pooled for j in judged]),
                {label: tau for label, tau in by_group.items() if not math.isnan(tau)},
            )
        return result


def _adjust(rows: Sequence[MeasureJudgment]) -> list[MeasureJudgment]:
    """Fill in `Versus.adjusted`, by Holm over all rows with the same other measure."""
    p_values: dict[str, dict[str, float]] = {}
    for row in rows:
        for versus in row.versus:
            if versus.over_tasks.is_decidable:
                known = p_values.setdefault(versus.other, {})
                known[row.name] = versus.over_tasks.p_value
    adjusted = {other: holm(known) for other, known in p_values.items()}
    return [
        dataclasses.replace(
            row,
            versus=tuple(
                dataclasses.replace(
                    versus,
                    adjusted=adjusted.get(versus.other, {}).get(row.name, math.nan),
                )
                for versus in row.versus
            ),
        )
        for row in rows
    ]
