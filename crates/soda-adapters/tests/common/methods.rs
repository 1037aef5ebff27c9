//! The methods that the contract test runs on.

use soda_adapters::boft::BoftConfig;
use soda_adapters::lokr::LokrConfig;
use soda_adapters::lora::LoraConfig;
use soda_adapters::oft::OftConfig;
use soda_adapters::soda::{
    Parametrization, RotationConfig, Selection, Shift, Side, SodaConfig, SpectrumConfig, Structure,
    Subspace,
};
use soda_adapters::{CayleyForm, METHOD_PRESETS, MethodConfig};

/// SODA with uneven sizes of the Kronecker factors.
fn uneven() -> SodaConfig {
    let sizes = vec![vec![2, 6], vec![3, 2, 2]];
    let rotation = RotationConfig { sizes, ..RotationConfig::default() };
    SodaConfig { rotation: Some(rotation), ..SodaConfig::default() }
}

/// Every preset whose initial adapter is the identity, and settings that no preset has.
pub(crate) fn methods() -> Vec<(String, MethodConfig)> {
    let named = METHOD_PRESETS.iter().filter(|(name, _)| *name != "soda-paper");
    let mut methods: Vec<_> =
        named.map(|(name, make)| ((*name).to_owned(), small(make()))).collect();
    let rotation = |side, parametrization| SodaConfig {
        rotation: Some(RotationConfig { side, parametrization, ..RotationConfig::default() }),
        ..SodaConfig::default()
    };
    let within = |subspace, side, parametrization, spectrum: SpectrumConfig| SodaConfig {
        rotation: Some(RotationConfig {
            structure: Structure::Subspace,
            subspace: Some(subspace),
            rank: Some(4),
            side,
            parametrization,
            ..RotationConfig::default()
        }),
        spectrum: Some(spectrum),
        ..SodaConfig::default()
    };
    let whole = SpectrumConfig::default();
    let leading = SpectrumConfig { rank: Some(3), ..SpectrumConfig::default() };
    let selected = SpectrumConfig { select: Some(Selection::Gradient), ..leading.clone() };
    let oft = |cayley, block_share, constraint, side| OftConfig {
        block_size: 4,
        cayley,
        block_share,
        constraint,
        side,
    };
    let shift = Shift::LowRank { rank: 2, seed: 5 };
    let low_rank = SpectrumConfig { shift, ..SpectrumConfig::default() };
    let structure = |structure, side, parametrization| SodaConfig {
        rotation: Some(RotationConfig {
            structure,
            block_size: (structure == Structure::GroupAndShuffle).then_some(3),
            rank: (structure == Structure::Householder).then_some(4),
            side,
            parametrization,
            ..RotationConfig::default()
        }),
        ..SodaConfig::default()
    };
    let more: Vec<(&str, MethodConfig)> = vec![
        (
            "permuted, both sides, Cayley",
            structure(Structure::KroneckerPermuted, Side::Both, Parametrization::Cayley).into(),
        ),
        (
            "permuted, unconstrained",
            structure(Structure::KroneckerPermuted, Side::Input, Parametrization::Unconstrained)
                .into(),
        ),
        (
            "group and shuffle",
            structure(Structure::GroupAndShuffle, Side::Both, Parametrization::Stiefel).into(),
        ),
        (
            "group and shuffle, unconstrained",
            structure(Structure::GroupAndShuffle, Side::Input, Parametrization::Unconstrained)
                .into(),
        ),
        (
            "reflections, both sides, whole spectrum",
            structure(Structure::Householder, Side::Both, Parametrization::Stiefel).into(),
        ),
        ("output side", rotation(Side::Output, Parametrization::Stiefel).into()),
        ("both sides, Cayley", rotation(Side::Both, Parametrization::Cayley).into()),
        (
            "subspaces of both sides, Cayley",
            within(Subspace::Gradient, Side::Both, Parametrization::Cayley, selected.clone())
                .into(),
        ),
        (
            "principal subspace, whole spectrum",
            within(Subspace::Principal, Side::Input, Parametrization::Stiefel, whole).into(),
        ),
        (
            "subspace of the output, unconstrained",
            within(Subspace::Principal, Side::Output, Parametrization::Unconstrained, leading)
                .into(),
        ),
        (
            "Kronecker, truncated spectrum",
            SodaConfig { spectrum: Some(selected), ..SodaConfig::default() }.into(),
        ),
        ("uneven factors", uneven().into()),
        ("unconstrained", rotation(Side::Input, Parametrization::Unconstrained).into()),
        ("svd low-rank", SodaConfig { spectrum: Some(low_rank), ..SodaConfig::svdiff() }.into()),
        ("oft exact, shared, both sides", oft(CayleyForm::Exact, true, None, Side::Both).into()),
        ("coft", oft(CayleyForm::Neumann { terms: 5 }, false, Some(0.5), Side::Input).into()),
        (
            "lokr both low-rank",
            LokrConfig { rank: 1, decompose_both: true, ..LokrConfig::default() }.into(),
        ),
        ("boft deep", BoftConfig { block_size: 2, levels: 9 }.into()),
        (
            "rank-stabilised",
            LoraConfig {
                rank: 4,
                alpha: Some(8.0),
                rank_stabilized: true,
                ..LoraConfig::default()
            }
            .into(),
        ),
    ];
    methods.extend(more.into_iter().map(|(name, method)| (name.to_owned(), method)));
    methods
}

/// Reduces ranks and block sizes to those of the small network.
fn small(mut method: MethodConfig) -> MethodConfig {
    match &mut method {
        MethodConfig::Lora(lora) => lora.rank = 4,
        MethodConfig::Loha(loha) => loha.rank = 2,
        MethodConfig::Lokr(lokr) => lokr.rank = 2,
        MethodConfig::Oft(oft) => oft.block_size = 4,
        MethodConfig::Boft(boft) => boft.block_size = 2,
        MethodConfig::Soda(soda) => {
            if let Some(rotation) = &mut soda.rotation {
                if rotation.structure == Structure::GroupAndShuffle {
                    rotation.block_size = Some(3);
                }
                rotation.rank = rotation.rank.map(|rank| rank.min(4));
            }
        }
        MethodConfig::Full(_) => {}
    }
    method
}
