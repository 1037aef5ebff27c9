//! `soda`: parameter-efficient fine-tuning of Stable Diffusion from the command line.
//!
//! Exit codes: 0 success, 1 failure, 2 invalid command line, 130 interrupted.

mod adapter_loading;
mod args;
mod base_model;
mod child;
mod command;
mod comparison_report;
mod device;
mod escape;
#[cfg(all(feature = "cpu", any(feature = "wgpu", test)))]
mod gradient_check;
mod launcher;
mod memory_meter;
mod out_of_memory;
mod progress;
mod prompt_syntax;
mod ranks;
mod remedy;
mod sampler_label;
mod shards;
mod synthetic;
mod timings;
mod usage;

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::command::bench::BenchArgs;
use crate::command::compare::CompareArgs;
use crate::command::config::ConfigArgs;
use crate::command::convert::ConvertArgs;
use crate::command::data::DataArgs;
use crate::command::evaluate::EvaluateArgs;
use crate::command::export::ExportArgs;
use crate::command::generate::GenerateArgs;
use crate::command::import::ImportArgs;
use crate::command::inspect::InspectArgs;
use crate::command::merge::MergeArgs;
use crate::command::train::TrainArgs;
#[cfg(feature = "ui")]
use crate::command::ui::UiArgs;
use crate::out_of_memory::catch_out_of_memory;
use crate::remedy::{CHILD, Failed, remedy};
use crate::timings::Timings;
use crate::usage::UsageError;

/// Training allocates and frees the tensors of the autodiff graph in every step. The system's allocator
/// returns such blocks to the system each time, which costs page faults.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Fine-tune Stable Diffusion on a subject or a style with SODA and other adapters.
#[derive(Debug, Parser)]
#[command(name = "soda", version, max_term_width = 100)]
struct Args {
    /// Print where the time went, on standard error. Each stage waits for the device
    #[arg(long, global = true)]
    timings: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train an adapter on a subject or a style from a folder of images
    Train(Box<TrainArgs>),
    /// Print the settings of a run, list the presets, or check a configuration file
    Config(Box<ConfigArgs>),
    /// Check a data folder before training
    Data(DataArgs),
    /// Generate images, with or without an adapter
    Generate(GenerateArgs),
    /// Merge an adapter, or two, into the base: a diffusers directory for other tools
    Merge(MergeArgs),
    /// Convert a model to another layout or precision
    Convert(ConvertArgs),
    /// Convert a LoRA, DoRA, OFT, LoHa or LoKr file of other tools to an adapter
    Import(ImportArgs),
    /// Export an adapter for other tools: kohya, diffusers, PEFT, or full weight deltas
    Export(ExportArgs),
    /// Print the contents of a model directory or an adapter file
    Inspect(InspectArgs),
    /// Generate the prompts of a data set and score the images
    Evaluate(EvaluateArgs),
    /// Compare training configurations over data sets and seeds, and write a report
    Compare(CompareArgs),
    /// Measure the time of training steps on this machine, with random weights
    Bench(BenchArgs),
    /// Start, show and stop runs on a page in the browser
    #[cfg(feature = "ui")]
    Ui(UiArgs),
}

/// The exit code of a command line that has to be typed in another way, as clap has it.
const USAGE: u8 = 2;

/// The options of all commands. An option that takes a value takes a negative number.
fn command_line() -> clap::Command {
    fn with_negative_numbers(command: clap::Command) -> clap::Command {
        let names: Vec<String> =
            command.get_subcommands().map(|below| below.get_name().to_owned()).collect();
        let command = command.mut_args(|arg| {
            let takes_value = arg.get_action().takes_values() && !arg.is_positional();
            if takes_value { arg.allow_negative_numbers(true) } else { arg }
        });
        names
            .into_iter()
            .fold(command, |command, name| command.mut_subcommand(name, with_negative_numbers))
    }
    with_negative_numbers(Args::command())
}

fn parse_args(argv: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Args, clap::Error> {
    let mut command = command_line();
    let argv: Vec<_> = argv.into_iter().collect();
    let matches = command
        .try_get_matches_from_mut(&argv)
        .map_err(|error| usage::with_own_tip(error, &argv))?;
    Args::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

fn main() -> ExitCode {
    child::end_with_parent();
    let args = parse_args(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let failed = match &args.command {
        _ if std::env::var_os(CHILD).is_some() => Failed::Child,
        Command::Train(_) => Failed::Train,
        Command::Generate(_) | Command::Merge(_) | Command::Convert(_) => Failed::Other,
        Command::Import(_) | Command::Export(_) => Failed::Other,
        Command::Evaluate(_) | Command::Compare(_) => Failed::Other,
        _ => Failed::WithoutOut,
    };
    let timings = args.timings.then(Timings::record);
    let result = catch_out_of_memory(|| match args.command {
        Command::Train(args) => command::train::run(*args),
        Command::Config(args) => command::config::run(*args),
        Command::Data(args) => command::data::run(args),
        Command::Generate(args) => command::generate::run(args),
        Command::Merge(args) => command::merge::run(args),
        Command::Import(args) => command::import::run(args),
        Command::Export(args) => command::export::run(args),
        Command::Inspect(args) => command::inspect::run(args),
        Command::Evaluate(args) => command::evaluate::run(args),
        Command::Compare(args) => command::compare::run(&args),
        Command::Bench(args) => command::bench::run(args),
        Command::Convert(args) => command::convert::run(args),
        #[cfg(feature = "ui")]
        Command::Ui(args) => command::ui::run(args),
    });
    let code = match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let remedy = remedy(&error, failed);
            progress::print_error(&error, &remedy);
            ranks::end(&progress::sentence(&error, &remedy));
            let is_usage = error.chain().any(|cause| cause.is::<UsageError>());
            if is_usage { ExitCode::from(USAGE) } else { ExitCode::FAILURE }
        }
    };
    device::finish();
    if let Some(timings) = timings {
        timings.print();
    }
    code
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::path::Path;

    use super::*;
    use crate::args::{CacheArg, DeviceArg, MergeModeName, MergedArgs, WeightsArgs};
    use crate::device::DeviceChoice;

    fn parse(argv: Vec<OsString>) -> Option<Command> {
        let argv = [OsString::from("soda")].into_iter().chain(argv);
        parse_args(argv).ok().map(|args| args.command)
    }

    #[test]
    fn the_options_are_consistent() {
        command_line().debug_assert();
    }

    /// Every option of every command that takes a value takes `-1` as one: it is read, or refused by name.
    #[test]
    fn a_negative_number_is_no_option() {
        fn check(command: &clap::Command, path: &[String]) {
            for below in command.get_subcommands() {
                check(below, &[path, &[below.get_name().to_owned()]].concat());
            }
            let options = command.get_arguments().filter_map(clap::Arg::get_long);
            for name in options.filter(|name| !["help", "version"].contains(name)) {
                let argv = [path, &[format!("--{name}"), "-1".to_owned()]].concat();
                let flag = command
                    .get_arguments()
                    .any(|arg| arg.get_long() == Some(name) && !arg.get_action().takes_values());
                let Err(error) = parse_args(argv.iter().map(OsString::from)) else { continue };
                let unknown = error.kind() == clap::error::ErrorKind::UnknownArgument;
                assert!(flag || !unknown, "{argv:?}: {error}");
            }
        }
        check(&command_line(), &["soda".to_owned()]);
    }

    /// `soda compare` starts `soda evaluate` by a command line. It must give the options it was made from.
    #[test]
    fn a_command_line_of_evaluate_parses_to_its_options() {
        let cache = CacheArg { cache: Some("caches".into()) };
        let one = MergedArgs {
            adapter: Some("runs/a/adapter.safetensors".into()),
            strength: -0.1,
            cache: cache.clone(),
            ..MergedArgs::default()
        };
        let two = MergedArgs {
            subject: Some("a".into()),
            style: Some("b".into()),
            weights: vec![-1.0 / 3.0, 1e-9],
            mode: MergeModeName::Geodesic,
            restore: 0.7,
            cache,
            ..MergedArgs::default()
        };
        let fp8: &[&str] = &["base_precision=fp8", "activation_precision=fp8"];
        let small: &[&str] = &["precision=bf16", "base_precision=nf4", "offload=3"];
        for (merged, device, settings) in [
            (one, DeviceChoice::Wgpu(Some(3)), small),
            (two, DeviceChoice::Cpu, &["text_encoder_offload=2"]),
            (MergedArgs::default(), DeviceChoice::Auto, fp8),
        ] {
            let mut table = soda_train::preset("toybox").expect("a preset");
            for setting in ["base=b", "data=d"].iter().chain(settings) {
                soda_train::apply_setting(&mut table, setting).expect("a setting");
            }
            let config = soda_train::TrainConfig::from_table(table).expect("settings");
            let weights = WeightsArgs::of_run(&config);
            let args = EvaluateArgs {
                base: "models/toy".into(),
                judges: "eval".into(),
                data: "photos/a mug".into(),
                trigger: Some("sks mug".to_owned()),
                held_out: 0.3,
                like: Some("photos/chalk".into()),
                merged,
                prompt: vec!["--a, \"mug\"".to_owned(), String::new()],
                unrelated: vec!["a blue boat".to_owned()],
                seed: u64::MAX,
                steps: 7,
                guidance: Some(7.5),
                resolution: Some(512),
                weights,
                out: "out".into(),
                device: DeviceArg { device },
            };
            let Some(Command::Evaluate(parsed)) = parse(args.to_argv()) else {
                panic!("not an evaluation: {:?}", args.to_argv())
            };
            assert_eq!(parsed, args);
        }
    }

    #[test]
    fn a_command_line_of_train_parses_to_its_options() {
        let cache = CacheArg { cache: Some("caches".into()) };
        let device = DeviceArg { device: DeviceChoice::Cuda(None) };
        let (config, runs) = (Path::new("runs/a-0.toml"), Path::new("runs"));
        let argv = command::train::train_argv(config, runs, "a-0", &cache, &device);
        let Some(Command::Train(parsed)) = parse(argv) else { panic!("not a training") };
        assert_eq!(parsed.settings.config.as_deref(), Some(config));
        assert_eq!((parsed.name.as_deref(), &*parsed.runs), (Some("a-0"), runs));
        assert_eq!((parsed.cache, parsed.device), (cache, device));
    }
}
