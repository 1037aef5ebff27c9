//! A base with something folded in: one adapter, or two merged.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use burn::module::Module as _;
use burn::tensor::Device;
use clap::{Args as ClapArgs, ValueEnum};
use soda_adapters::merge::{Combine, combine};
use soda_adapters::{AdapterFile, attach_all};
use soda_models::pipeline::{LoadOptions, Pipeline};

use crate::args::CacheArg;
use crate::command::{load_merged, plan, prepare};

/// What is folded in.
#[derive(Debug, ClapArgs)]
pub(crate) struct FoldArgs {
    /// The adapter file
    #[arg(long, value_name = "FILE", conflicts_with = "subject")]
    pub(crate) adapter: Option<PathBuf>,
    /// How much of the adapter: 0 is the base, 1 is what was trained
    #[arg(long, default_value_t = 1.0, requires = "adapter")]
    pub(crate) strength: f64,
    /// The first of two adapter files to merge
    #[arg(long, value_name = "FILE", requires = "style")]
    pub(crate) subject: Option<PathBuf>,
    /// The second
    #[arg(long, value_name = "FILE", requires = "subject")]
    pub(crate) style: Option<PathBuf>,
    /// How much of the subject and of the style
    #[arg(long, value_name = "A,B", value_delimiter = ',', default_values_t = [1.0, 1.0])]
    pub(crate) weights: Vec<f64>,
    /// How the two become one
    #[arg(long, value_enum, default_value_t)]
    pub(crate) mode: MergeMode,
    /// Of geodesic: give the mean the turn that its parts lose by cancelling, from 0 (none) to 1 (all)
    #[arg(long, default_value_t = 0.0)]
    pub(crate) restore: f64,
    #[command(flatten)]
    pub(crate) cache: CacheArg,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum MergeMode {
    /// W0 + a (W1 - W0) + b (W2 - W0)
    #[default]
    Residual,
    /// exp(a log R1 + b log R2)
    Geodesic,
    /// R1^a R2^b
    Compose,
}

impl FoldArgs {
    /// The base as it is asked for; `None` where nothing is to be folded in.
    pub(crate) fn load(&self, base: &Path, device: &Device) -> Result<Option<Pipeline>> {
        Ok(match (&self.adapter, &self.subject, &self.style) {
            (Some(adapter), _, _) => {
                let options = LoadOptions::default();
                let cache = self.cache.open();
                Some(load_merged(base, &options, adapter, self.strength, cache.as_ref(), device)?)
            }
            (None, Some(subject), Some(style)) => Some(self.two(base, subject, style, device)?),
            (None, _, _) => None,
        })
    }

    fn two(&self, base: &Path, subject: &Path, style: &Path, device: &Device) -> Result<Pipeline> {
        let &[first, second] = self.weights.as_slice() else {
            bail!("--weights takes two numbers")
        };
        ensure!(first.is_finite() && second.is_finite(), "--weights must be finite numbers");
        ensure!((0.0..=1.0).contains(&self.restore), "--restore must be from 0 to 1");
        let (subject_file, style_file) =
            (<AdapterFile>::read(subject)?, <AdapterFile>::read(style)?);
        let mut pipeline = Pipeline::load(base, device)?;
        prepare(&subject_file, subject, &mut pipeline)?;
        ensure!(
            subject_file.header.schedule == style_file.header.schedule,
            "{} and {} are trained for different noise schedules; train both with the same `objective`",
            subject.display(),
            style.display()
        );
        let mut others = style_file.clone();
        others.words.retain(|word, vectors| subject_file.words.get(word) != Some(vectors));
        if let Some(word) = others.words.keys().find(|word| subject_file.words.contains_key(*word))
        {
            bail!(
                "{} and {} both have the word `{word}`, with other vectors; train one of them with another word",
                subject.display(),
                style.display()
            );
        }
        prepare(&others, style, &mut pipeline)?;
        let cache = self.cache.open();
        let plans = [
            (plan(&subject_file, subject, &pipeline, base, cache.as_ref())?, first),
            (plan(&style_file, style, &pipeline, base, cache.as_ref())?, second),
        ];
        let networks = pipeline.networks();
        let networks = match self.mode {
            MergeMode::Residual => attach_all(plans, networks),
            MergeMode::Geodesic => {
                combine(plans, Combine::Geodesic { restore: self.restore })?.attach(networks)
            }
            MergeMode::Compose => combine(plans, Combine::Compose)?.attach(networks),
        };
        pipeline.set_networks(networks.materialize());
        Ok(pipeline)
    }
}
