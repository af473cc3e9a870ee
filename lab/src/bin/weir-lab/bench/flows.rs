//! What recording flows costs, and what is lost when there are too many.

mod events;
mod follower;

use std::{collections::BTreeMap, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::{
    Case, Narrator, Path, SystemKind, cases,
    figures::Figure,
    report::median,
    system::{System, resident},
};
use events::Source;
use follower::Follower;

/// What recording may take of new connections a second.
const CONNECTIONS: f64 = 0.97;
/// Connections a second that are taken in without loss.
const RATE: u32 = 50_000;
/// For how long, if it is not a first impression.
const LONG: Duration = Duration::from_secs(10);
/// What is on its way through ring buffer, queue and follower when the events end.
const SETTLE: Duration = Duration::from_secs(2);

/// What is done with flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Recording {
    Nothing,
    /// They are recorded, and nobody asks for them.
    Unread,
    Followed,
}

const ALL: [Recording; 3] = [Recording::Nothing, Recording::Unread, Recording::Followed];

/// All of it.
pub(super) fn run(rounds: u32, length: Duration, tell: Narrator) -> Result<Vec<Figure>> {
    weir_lab::require_root()?;
    let mut figures = Vec::new();
    for (kind, path) in [
        (SystemKind::Direct, Path::SameNode),
        (SystemKind::Mtls, Path::CrossNode),
    ] {
        figures.extend(cost(kind, path, rounds, length, tell)?);
    }
    let long = if length < Duration::from_secs(1) {
        length
    } else {
        LONG
    };
    figures.extend(flood(long, tell)?);
    Ok(figures)
}

/// Each case with records and one follower, against none, one after the other.
fn cost(kind: SystemKind, path: Path, rounds: u32, length: Duration, tell: Narrator) -> Result<Vec<Figure>> {
    let without = kind.unrecorded().context("no twin without records")?;
    tell.say(format!("starting: {} and {}", kind.name(), without.name()));
    let (with, without) = (
        System::start(kind, None, 0.0)?,
        System::start(without, None, 0.0)?,
    );
    let mut figures = Vec::new();
    for (case, name, target) in [
        (Case::Crr1, "new connections, 1 client", Some(CONNECTIONS)),
        (Case::Crr16, "new connections, 16 clients", Some(CONNECTIONS)),
        (Case::Bulk1, "bulk throughput", None),
    ] {
        let measured = |system: &System| -> Result<f64> {
            let figures = cases::measure(system, path, case, length)?;
            Ok(figures.first().context("no figure")?.1)
        };
        let followed = || -> Result<f64> {
            let follower = Follower::start(with.agents().first().context("no agent")?, false)?;
            let rate = measured(&with)?;
            ensure!(follower.stop()?.flows > 0, "the follower saw no flow");
            Ok(rate)
        };
        let mut found: BTreeMap<Recording, Vec<f64>> = BTreeMap::new();
        for round in 0..rounds {
            // In turns, so that none always comes first.
            for number in 0..ALL.len() {
                let recording = ALL[(round as usize + number) % ALL.len()];
                let figure = match recording {
                    Recording::Nothing => measured(&without)?,
                    Recording::Unread => measured(&with)?,
                    Recording::Followed => followed()?,
                };
                found.entry(recording).or_default().push(figure);
            }
        }
        let label = |what: &str| format!("{}, {}, {name}: {what}", kind.name(), path.name());
        let ratio = |recording| -> f64 {
            let of = |recording| found.get(&recording).into_iter().flatten();
            let pairs = of(recording).zip(of(Recording::Nothing));
            let ratios: Vec<f64> = pairs.map(|(with, without)| with / without).collect();
            median(&ratios)
        };
        let unread = ratio(Recording::Unread);
        figures.push(Figure::new(label("with records"), unread, "ratio"));
        let followed = Figure::new(label("with a follower, too"), ratio(Recording::Followed), "ratio");
        figures.push(match target {
            Some(target) => followed.at_least(target),
            None => followed,
        });
        // What the ratio is to be compared with: the same against itself.
        let mut alone = found.remove(&Recording::Nothing).unwrap_or_default();
        alone.sort_by(f64::total_cmp);
        if let (Some(least), Some(most)) = (alone.first(), alone.last()) {
            figures.push(Figure::new(
                label("without, lowest to highest"),
                least / most,
                "ratio",
            ));
        }
        tell.say(format!("{}: done", label("measured")));
    }
    Ok(figures)
}

/// Connections that never were, in their rate: what of them is recorded, and what a follower costs that stopped reading.
fn flood(length: Duration, tell: Narrator) -> Result<Vec<Figure>> {
    tell.say("starting: direct, for events that are made up");
    let system = System::start(SystemKind::Direct, None, 0.0)?;
    let agent = system.agents().first().context("no agent")?;
    let mut source = Source::new(&system)?;
    let mut figures = Vec::new();
    for (name, stalls) in [("", false), (", beside one that stopped reading", true)] {
        let follower = Follower::start(agent, false)?;
        let stalled = if stalls {
            Some(Follower::start(agent, true)?)
        } else {
            None
        };
        let before = (events::counters(agent)?, resident(agent.pid())?);
        let made = source.run(RATE, length)?;
        thread::sleep(SETTLE);
        let after = (events::counters(agent)?, resident(agent.pid())?);
        let seen = follower.stop()?;
        let figure = |what: &str, value: u64, unit| Figure::new(format!("{what}{name}"), value as f64, unit);
        let recorded = after.0.recorded - before.0.recorded;
        let lost = after.0.lost - before.0.lost;
        figures.push(figure("made-up connections", made.connections, ""));
        figures.push(
            Figure::new(
                format!("their rate{name}"),
                made.connections as f64 / made.took.as_secs_f64(),
                "1/s",
            )
            .at_least(f64::from(RATE) * 0.98),
        );
        figures.push(figure("records of these", recorded, ""));
        figures.push(figure("said to be lost", lost, "").at_most(0.0));
        // The rest of the machine is idle: nothing else is recorded.
        let unexplained = (2 * made.connections).abs_diff(recorded + lost);
        figures.push(figure("neither recorded nor said to be lost", unexplained, "").at_most(0.0));
        figures.push(figure("that the follower got", seen.flows, ""));
        figures.push(figure("that the follower was told it missed", seen.lost, ""));
        figures.push(Figure::new(
            format!("CPU of the agent{name}"),
            (after.0.cpu - before.0.cpu) / made.took.as_secs_f64(),
            "cores",
        ));
        let grown = after.1.saturating_sub(before.1) as f64 / f64::from(1 << 20);
        figures.push(Figure::new(format!("memory that it grew by{name}"), grown, "MiB"));
        if let Some(stalled) = stalled {
            let seen = stalled.stop()?;
            figures.push(figure("that it got once it read on", seen.flows, ""));
            figures.push(figure("that it was told it missed", seen.lost, ""));
        }
        tell.say(format!("{RATE} connections a second{name}: done"));
    }
    Ok(figures)
}
