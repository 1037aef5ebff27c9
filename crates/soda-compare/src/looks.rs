//! What the looks at finished runs found, as a part of the report.

use std::path::Path;

use maud::{Markup, PreEscaped, html};
use soda_train::plot::{Line, lines};

use crate::error::CompareError;
use crate::probe::{Look, Probe, Seen};
use crate::results::Results;
use crate::sheets::part;
use crate::statistics::Summary;

/// All looks of one series at one place.
#[derive(Clone, Debug)]
pub struct Place {
    /// [`Probe::series`].
    pub series: String,
    /// [`Probe::at`].
    pub at: Vec<f64>,
    /// Looks that are done.
    pub looks: usize,
    /// Summaries of CLIP-T, DINO to truth and to the subject, CLIP-I to the subject and to the style, drift.
    pub scores: Vec<Option<Summary>>,
}

/// A score's name, and where it is read.
type Score = (&'static str, fn(&Seen) -> Option<f32>);

/// The scores reported; the first two are what the figure shows.
const SEEN: [Score; 6] = [
    ("CLIP-T", |seen| Some(seen.scores.clip_t)),
    ("DINO to truth", |seen| seen.scores.truth_dino),
    ("DINO to subject", |seen| Some(seen.scores.dino)),
    ("CLIP-I to subject", |seen| Some(seen.scores.clip_i)),
    ("CLIP-I to style", |seen| seen.style_clip_i),
    ("drift", |seen| seen.scores.drift),
];

/// The places of all series, in the order of `probes`.
pub fn places(probes: &[Probe], seen: &Results<Seen>) -> Vec<Place> {
    let mut places: Vec<Place> = Vec::new();
    for probe in probes {
        if !places.iter().any(|place| place.series == probe.series && place.at == probe.at) {
            let here = |other: &&Probe| other.series == probe.series && other.at == probe.at;
            let found: Vec<&Seen> =
                probes.iter().filter(here).filter_map(|probe| seen.get(&probe.id)).collect();
            let summary = |(_, score): &Score| {
                let values = found.iter().filter_map(|seen| score(seen)).map(f64::from);
                Summary::of(&values.collect::<Vec<_>>())
            };
            places.push(Place {
                series: probe.series.clone(),
                at: probe.at.clone(),
                looks: found.len(),
                scores: SEEN.iter().map(summary).collect(),
            });
        }
    }
    places.retain(|place| place.looks > 0);
    places
}

/// The part of the report; empty where nothing was looked at. The looks' pictures are in `folder`.
pub(crate) fn section(
    probes: &[Probe],
    seen: &Results<Seen>,
    folder: &Path,
) -> Result<Markup, CompareError> {
    let places = places(probes, seen);
    if places.is_empty() {
        return Ok(html! {});
    }
    let pictures = merged(probes, seen, folder)?;
    Ok(html! {
        h2 { "Strength and merging" }
        table {
            tr { th { "adapters" } th { "at" } th { "looks" } @for (name, _) in SEEN { th { (name) } } }
            @for place in &places {
                tr {
                    td { (place.series) } td { (at(&place.at)) } td { (place.looks) }
                    @for score in &place.scores {
                        td {
                            @if let Some(score) = score {
                                (format!("{:.3} ± {:.3}", score.mean, score.deviation))
                            }
                        }
                    }
                }
            }
        }
        @for (index, (name, _)) in SEEN[..2].iter().enumerate() {
            (PreEscaped(lines("strength", name, &curves(&places, index))))
        }
        @for (name, source) in pictures {
            div { small { (name) } br; img src=(source) alt=(name); }
        }
    })
}

fn at(place: &[f64]) -> String {
    place.iter().map(f64::to_string).collect::<Vec<_>>().join(", ")
}

/// A score over the strength, a line a series.
fn curves(places: &[Place], score: usize) -> Vec<Line> {
    let mut curves: Vec<Line> = Vec::new();
    for place in places {
        let ([t], Some(summary)) = (&place.at[..], place.scores[score]) else { continue };
        if curves.last().is_none_or(|line| line.name != place.series) {
            curves.push(Line { name: place.series.clone(), points: Vec::new(), faint: false });
        }
        if let Some(line) = curves.last_mut() {
            line.points.push((*t, summary.mean));
        }
    }
    curves
}

/// What each way of merging drew of the first pair.
fn merged(
    probes: &[Probe],
    seen: &Results<Seen>,
    folder: &Path,
) -> Result<Vec<(String, String)>, CompareError> {
    let pair = |probe: &Probe| match &probe.look {
        Look::Merge { style, .. } => Some((probe.run.id.clone(), style.id.clone())),
        Look::Strength { .. } => None,
    };
    let done = || probes.iter().filter(|probe| seen.get(&probe.id).is_some());
    let Some(first) = done().find_map(pair) else { return Ok(Vec::new()) };
    let shown = done().filter(|probe| pair(probe).as_ref() == Some(&first));
    let figure = |probe: &Probe| {
        let path = folder.join(&probe.id).join("samples.png");
        let name = format!("{} at {}", probe.series, at(&probe.at));
        // Rows: the subject's pictures, and what was drawn.
        Ok((name, part(&path, 2, 1..2)?))
    };
    shown.map(figure).collect()
}
