//! What was measured: samples of subjects under workloads, and what was asked of them.

use std::collections::BTreeMap;

/// Something that is counted, with its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Figure {
    GbitPerSecond,
    RequestsPerSecond,
    P99Milliseconds,
    CpuSecondsPerGib,
    CpuSecondsPer100k,
    Mebibytes,
    /// Until nine tenths of the rate measured later were reached, from the first request on.
    RampSeconds,
    LostDatagrams,
    Failed,
}

impl Figure {
    /// Heading of its column.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::GbitPerSecond => "Gbit/s",
            Self::RequestsPerSecond => "requests/s",
            Self::P99Milliseconds => "p99 ms",
            Self::CpuSecondsPerGib => "CPU-s/GiB",
            Self::CpuSecondsPer100k => "CPU-s/100k",
            Self::Mebibytes => "MiB",
            Self::RampSeconds => "s to 90 %",
            Self::LostDatagrams => "lost",
            Self::Failed => "failed",
        }
    }

    /// Key of it in JSON.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::GbitPerSecond => "gbit_per_second",
            Self::RequestsPerSecond => "requests_per_second",
            Self::P99Milliseconds => "p99_ms",
            Self::CpuSecondsPerGib => "cpu_seconds_per_gib",
            Self::CpuSecondsPer100k => "cpu_seconds_per_100k",
            Self::Mebibytes => "mebibytes",
            Self::RampSeconds => "ramp_seconds",
            Self::LostDatagrams => "lost_datagrams",
            Self::Failed => "failed",
        }
    }

    /// A value as it is printed.
    pub(crate) fn text(self, value: f64) -> String {
        match self {
            Self::RequestsPerSecond | Self::LostDatagrams | Self::Failed => format!("{value:.0}"),
            Self::Mebibytes | Self::RampSeconds => format!("{value:.1}"),
            _ => format!("{value:.2}"),
        }
    }
}

/// What one run brought.
pub(crate) type Sample = Vec<(Figure, f64)>;

/// Everything measured over one path, and what was asked of it.
pub(crate) struct Section {
    pub(crate) name: &'static str,
    /// What is between what, and whose CPU time it is.
    pub(crate) about: String,
    pub(crate) rows: Vec<Row>,
    /// Peers that were not there, with the reason.
    pub(crate) absent: Vec<(&'static str, &'static str)>,
    pub(crate) targets: Vec<Target>,
}

/// One subject under one workload.
pub(crate) struct Row {
    pub(crate) workload: &'static str,
    pub(crate) subject: &'static str,
    pub(crate) samples: Vec<Sample>,
    /// Runs that brought nothing.
    pub(crate) failed: usize,
}

/// What adit should reach.
pub(crate) struct Target {
    pub(crate) workload: &'static str,
    /// Usually [`ADIT`]; another where adit stands in several ways.
    pub(crate) subject: &'static str,
    pub(crate) figure: Figure,
    pub(crate) against: Against,
    pub(crate) bound: Bound,
}

/// What adit's median is held against.
pub(crate) enum Against {
    /// The median of the one of these subjects that did best.
    Best(&'static [&'static str]),
    /// A value in the figure's unit.
    Value,
}

/// A bound on the ratio, or on the value.
#[derive(Clone, Copy)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// How a target came out.
pub(crate) struct Outcome {
    pub(crate) asked: String,
    pub(crate) measured: String,
    pub(crate) reached: bool,
}

impl Section {
    pub(crate) fn new(name: &'static str, about: impl Into<String>) -> Self {
        Self { name, about: about.into(), rows: Vec::new(), absent: Vec::new(), targets: Vec::new() }
    }

    /// Adds what a run brought; nothing for a run that failed, which is then counted as such.
    pub(crate) fn add(&mut self, workload: &'static str, subject: &'static str, sample: Option<Sample>) {
        let row = self.rows.iter().position(|row| row.workload == workload && row.subject == subject);
        let row = row.unwrap_or_else(|| {
            self.rows.push(Row { workload, subject, samples: Vec::new(), failed: 0 });
            self.rows.len() - 1
        });
        self.rows[row].failed += usize::from(sample.is_none());
        self.rows[row].samples.extend(sample);
    }

    pub(crate) fn absent(&mut self, peer: &'static str, reason: &'static str) {
        self.absent.push((peer, reason));
    }

    /// Asks of adit's `figure` under `workload`.
    pub(crate) fn ask(&mut self, workload: &'static str, figure: Figure, against: Against, bound: Bound) {
        self.targets.push(Target { workload, subject: ADIT, figure, against, bound });
    }

    /// Workloads in the order in which they were first run.
    pub(crate) fn workloads(&self) -> Vec<&'static str> {
        let mut workloads: Vec<&'static str> = Vec::new();
        for row in &self.rows {
            if !workloads.contains(&row.workload) {
                workloads.push(row.workload);
            }
        }
        workloads
    }

    /// Figures of any of the rows, in the order of their columns.
    pub(crate) fn figures(&self) -> Vec<Figure> {
        let all = self.rows.iter().flat_map(|row| row.samples.iter().flatten().map(|(figure, _)| *figure));
        let mut figures: Vec<Figure> = all.collect();
        figures.sort_unstable();
        figures.dedup();
        // Nothing failed, as it should be.
        if self.rows.iter().all(|row| row.spread(Figure::Failed).is_none_or(|spread| spread.high == 0.0)) {
            figures.retain(|figure| *figure != Figure::Failed);
        }
        figures
    }

    fn row(&self, workload: &str, subject: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.workload == workload && row.subject == subject)
    }

    fn median(&self, workload: &str, subject: &str, figure: Figure) -> Option<f64> {
        self.row(workload, subject)?.spread(figure).map(|spread| spread.median)
    }

    /// How the targets came out; a target whose peers are absent has no outcome.
    pub(crate) fn outcomes(&self) -> Vec<(&Target, Option<Outcome>)> {
        self.targets.iter().map(|target| (target, self.outcome(target))).collect()
    }

    fn outcome(&self, target: &Target) -> Option<Outcome> {
        let row = self.row(target.workload, target.subject)?;
        let failures = row.failures();
        let Some(ours) = row.spread(target.figure).map(|spread| spread.median) else {
            // Nothing was measured because nothing worked.
            let asked = format!("{} of it", target.figure.name());
            return failures.map(|measured| Outcome { asked, measured, reached: false });
        };
        let (word, bound) = match target.bound {
            Bound::AtLeast(bound) => ("at least", bound),
            Bound::AtMost(bound) => ("at most", bound),
        };
        let name = target.figure.name();
        let (asked, measured, value) = match target.against {
            Against::Value => {
                let measured = format!("{} {name}", target.figure.text(ours));
                (format!("{word} {} {name}", target.figure.text(bound)), measured, ours)
            }
            Against::Best(peers) => {
                let medians = peers
                    .iter()
                    .filter_map(|peer| Some((*peer, self.median(target.workload, peer, target.figure)?)));
                let mut medians: Vec<(&str, f64)> = medians.collect();
                medians.sort_by(|(_, one), (_, other)| one.total_cmp(other));
                // The best rate is the highest, the best cost the lowest.
                let best = match target.bound {
                    Bound::AtLeast(_) => medians.last(),
                    Bound::AtMost(_) => medians.first(),
                };
                let (peer, theirs) = best?;
                let ratio = ours / theirs;
                (format!("{word} {bound:.2}x the {name} of {peer}"), format!("{ratio:.2}x"), ratio)
            }
        };
        let reached = match target.bound {
            Bound::AtLeast(bound) => value >= bound,
            Bound::AtMost(bound) => value <= bound,
        };
        // What fails is not fast.
        let measured = failures.iter().fold(measured, |measured, failures| format!("{measured}, {failures}"));
        Some(Outcome { asked, measured, reached: reached && failures.is_none() })
    }
}

/// Median and extremes of a figure's samples.
pub(crate) struct Spread {
    pub(crate) low: f64,
    pub(crate) median: f64,
    pub(crate) high: f64,
}

impl Row {
    /// Runs and requests that failed, in words.
    pub(crate) fn failures(&self) -> Option<String> {
        let runs = (self.failed > 0)
            .then(|| format!("{} of {} runs failed", self.failed, self.failed + self.samples.len()));
        let requests: f64 = self.values(Figure::Failed).iter().sum();
        let requests = (requests > 0.0).then(|| format!("{} failed", Figure::Failed.text(requests)));
        let all: Vec<String> = [runs, requests].into_iter().flatten().collect();
        (!all.is_empty()).then(|| all.join(", "))
    }

    pub(crate) fn values(&self, figure: Figure) -> Vec<f64> {
        let of = |sample: &Sample| sample.iter().find(|(other, _)| *other == figure).map(|(_, value)| *value);
        self.samples.iter().filter_map(of).collect()
    }

    pub(crate) fn spread(&self, figure: Figure) -> Option<Spread> {
        let mut values = self.values(figure);
        values.sort_by(f64::total_cmp);
        let (low, high) = (*values.first()?, *values.last()?);
        Some(Spread { low, median: values[values.len() / 2], high })
    }

    /// Every figure's values, for JSON.
    pub(crate) fn by_figure(&self) -> BTreeMap<&'static str, Vec<f64>> {
        let mut all: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
        for (figure, value) in self.samples.iter().flatten() {
            all.entry(figure.key()).or_default().push(*value);
        }
        all
    }
}

/// The subject that targets are about.
pub(crate) const ADIT: &str = "adit";
