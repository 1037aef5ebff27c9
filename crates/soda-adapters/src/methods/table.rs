//! The table of methods, from which configurations, adapter files and the command line choose by name.
//!
//! A row of [`methods!`](crate::methods) makes a variant of the configuration, with the serde tag `name`, and
//! a variant of the adapter. All other code is generic over [`Method`](crate::Method).

use super::boft::BoftConfig;
use super::full::FullConfig;
use super::loha::LohaConfig;
use super::lokr::LokrConfig;
use super::lora::LoraConfig;
use super::oft::OftConfig;
use super::soda::SodaConfig;
use crate::error::AdapterError;

/// Defines an enum of configurations and an enum of adapters, with a row `"name" => Variant(Config)` for each
/// method.
///
/// The configuration enum is itself a [`Method`](crate::Method). A crate with its own methods defines its own
/// table, with the rows of [`MethodConfig`](crate::MethodConfig) that it wants. The crate needs `burn` and
/// `serde` as dependencies.
#[macro_export]
macro_rules! methods {
    (
        $(#[$config_doc:meta])* $config:ident,
        $(#[$adapter_doc:meta])* $adapter:ident:
        $($(#[$doc:meta])* $name:literal => $variant:ident($type:ty),)+
    ) => {
        $(#[$config_doc])*
        #[derive(Clone, Debug, PartialEq, ::serde::Serialize, ::serde::Deserialize)]
        #[serde(tag = "name")]
        pub enum $config {
            $($(#[$doc])* #[serde(rename = $name)] $variant($type),)+
        }

        $(#[$adapter_doc])*
        #[derive(Clone, Debug)]
        #[allow(missing_docs, reason = "the configuration documents each variant")]
        #[allow(clippy::large_enum_variant, reason = "a layer has one adapter, and its size depends on the backend")]
        pub enum $adapter {
            $($variant(<$type as $crate::Method>::Adapter),)+
        }

        impl $config {
            /// The names of the table's rows.
            pub const NAMES: &'static [&'static str] = &[$($name),+];
        }

        impl $crate::Method for $config {
            type Adapter = $adapter;

            fn name(&self) -> &'static str {
                match self { $(Self::$variant(_) => $name,)+ }
            }

            fn init(
                &self,
                path: &str,
                weight: &$crate::Weight,
            ) -> Result<$adapter, $crate::AdapterError> {
                match self {
                    $(Self::$variant(config) => {
                        $crate::Method::init(config, path, weight).map($adapter::$variant)
                    })+
                }
            }

            fn needs_svd(&self) -> bool {
                match self { $(Self::$variant(config) => $crate::Method::needs_svd(config),)+ }
            }

            fn needs_svd_to_restore(&self) -> bool {
                match self {
                    $(Self::$variant(config) => $crate::Method::needs_svd_to_restore(config),)+
                }
            }

            fn calibration(&self) -> Option<$crate::CalibrationRequest> {
                match self { $(Self::$variant(config) => $crate::Method::calibration(config),)+ }
            }

            fn calibrated(
                &self,
                calibration: &$crate::Calibration,
            ) -> Result<Self, $crate::AdapterError> {
                match self {
                    $(Self::$variant(config) => {
                        $crate::Method::calibrated(config, calibration).map(Self::$variant)
                    })+
                }
            }

            fn probe(
                &self,
                path: &str,
                weight: &$crate::Weight,
            ) -> Result<Option<$crate::Probe>, $crate::AdapterError> {
                match self { $(Self::$variant(config) => $crate::Method::probe(config, path, weight),)+ }
            }

            fn is_trained(&self, parameter: &str) -> bool {
                match self {
                    $(Self::$variant(config) => $crate::Method::is_trained(config, parameter),)+
                }
            }

            fn needs_its_base(&self) -> bool {
                match self { $(Self::$variant(config) => $crate::Method::needs_its_base(config),)+ }
            }

            fn depends_on_timestep(&self) -> bool {
                match self { $(Self::$variant(config) => $crate::Method::depends_on_timestep(config),)+ }
            }

            fn geometry(&self, path: &str) -> $crate::Geometry {
                match self { $(Self::$variant(config) => $crate::Method::geometry(config, path),)+ }
            }
        }

        impl $crate::Adapter for $adapter {
            fn apply(&self, w: ::burn::tensor::Tensor<2>) -> ::burn::tensor::Tensor<2> {
                match self { $(Self::$variant(adapter) => $crate::Adapter::apply(adapter, w),)+ }
            }

            fn at_strength(self, t: f64) -> Result<Self, $crate::macro_support::LinalgError> {
                Ok(match self {
                    $(Self::$variant(adapter) => {
                        Self::$variant($crate::Adapter::at_strength(adapter, t)?)
                    })+
                })
            }

            fn product(
                &self,
                x: &::burn::tensor::Tensor<2>,
                w: &$crate::BaseWeight,
            ) -> Option<::burn::tensor::Tensor<2>> {
                match self { $(Self::$variant(adapter) => $crate::Adapter::product(adapter, x, w),)+ }
            }

            fn depends_on_timestep(&self) -> bool {
                match self { $(Self::$variant(adapter) => $crate::Adapter::depends_on_timestep(adapter),)+ }
            }

            fn low_rank(&self) -> Option<(::burn::tensor::Tensor<2>, ::burn::tensor::Tensor<2>)> {
                match self { $(Self::$variant(adapter) => $crate::Adapter::low_rank(adapter),)+ }
            }

            fn rebased(self, w: &::burn::tensor::Tensor<2>) -> Self {
                match self {
                    $(Self::$variant(adapter) => {
                        Self::$variant($crate::Adapter::rebased(adapter, w))
                    })+
                }
            }

            fn merge(
                weighted: Vec<(f64, Self)>,
                rule: $crate::MergeRule,
            ) -> Result<Option<Self>, $crate::macro_support::LinalgError> {
                let total = weighted.len();
                $(
                    let same: Vec<_> = weighted
                        .iter()
                        .filter_map(|(weight, adapter)| match adapter {
                            Self::$variant(adapter) => Some((*weight, adapter.clone())),
                            #[allow(unreachable_patterns, reason = "a table may have one row")]
                            _ => None,
                        })
                        .collect();
                    // Fewer than all means adapters of different methods.
                    if same.len() == total {
                        return Ok($crate::Adapter::merge(same, rule)?.map(Self::$variant));
                    }
                )+
                Ok(None)
            }
        }

        // Not derived, because a derived enum puts the name of the variant into every path.
        impl ::burn::module::Module for $adapter {
            fn visit<V: ::burn::module::ModuleVisitor>(&self, visitor: &mut V) {
                match self { $(Self::$variant(adapter) => adapter.visit(visitor),)+ }
            }

            fn map<V: ::burn::module::ModuleMapper>(self, mapper: &mut V) -> Self {
                match self { $(Self::$variant(adapter) => Self::$variant(adapter.map(mapper)),)+ }
            }

            fn collect_devices(&self, devices: ::burn::module::Devices) -> ::burn::module::Devices {
                match self { $(Self::$variant(adapter) => adapter.collect_devices(devices),)+ }
            }

            fn to_device(self, device: &::burn::tensor::Device) -> Self {
                match self {
                    $(Self::$variant(adapter) => Self::$variant(adapter.to_device(device)),)+
                }
            }

            fn fork(self, device: &::burn::tensor::Device) -> Self {
                match self { $(Self::$variant(adapter) => Self::$variant(adapter.fork(device)),)+ }
            }

            fn train(self) -> Self {
                match self { $(Self::$variant(adapter) => Self::$variant(adapter.train()),)+ }
            }

            fn valid(&self) -> Self {
                match self { $(Self::$variant(adapter) => Self::$variant(adapter.valid()),)+ }
            }

            fn materialize(self) -> Self {
                match self { $(Self::$variant(adapter) => Self::$variant(adapter.materialize()),)+ }
            }
        }

        $(impl From<$type> for $config {
            fn from(config: $type) -> Self {
                Self::$variant(config)
            }
        })+
    };
}

methods! {
    /// Settings of any method of this crate.
    MethodConfig,
    /// The adapter of any method of this crate.
    AnyAdapter:
    /// SODA, SVDiff, a rotation alone, GSOFT, PSOFT, or HRA.
    "soda" => Soda(SodaConfig),
    /// LoRA, rank-stabilized LoRA, PiSSA, or DoRA.
    "lora" => Lora(LoraConfig),
    /// LoHa: a Hadamard product of low-rank products.
    "loha" => Loha(LohaConfig),
    /// LoKr: a Kronecker product.
    "lokr" => Lokr(LokrConfig),
    /// OFT: a block-diagonal rotation.
    "oft" => Oft(OftConfig),
    /// BOFT: a butterfly of block-diagonal rotations.
    "boft" => Boft(BoftConfig),
    /// Full fine-tuning of the weights.
    "full" => Full(FullConfig),
}

impl Default for MethodConfig {
    fn default() -> Self {
        Self::Soda(SodaConfig::default())
    }
}

/// A name and the settings that it stands for.
pub type MethodPreset = (&'static str, fn() -> MethodConfig);

/// Named settings for a command line: each method of a paper with its usual defaults.
pub const METHOD_PRESETS: &[MethodPreset] = &[
    ("soda", || SodaConfig::default().into()),
    ("soda-subspace", || SodaConfig::subspace().into()),
    ("soda-qr", || SodaConfig::qr().into()),
    ("soda-qr-low-rank", || SodaConfig::qr_low_rank(8).into()),
    ("soda-paper", || SodaConfig::paper().into()),
    ("svdiff", || SodaConfig::svdiff().into()),
    ("kronecker", || SodaConfig::rotation_only().into()),
    ("lora", || LoraConfig::default().into()),
    ("pissa", || LoraConfig::pissa().into()),
    ("dora", || LoraConfig::dora().into()),
    ("t-lora", || LoraConfig::t_lora().into()),
    ("loha", || LohaConfig::default().into()),
    ("lokr", || LokrConfig::default().into()),
    ("oft", || OftConfig::default().into()),
    ("boft", || BoftConfig::default().into()),
    ("soda-permuted", || SodaConfig::permuted().into()),
    ("gsoft", || SodaConfig::gsoft().into()),
    ("psoft", || SodaConfig::psoft().into()),
    ("hra", || SodaConfig::hra().into()),
    ("full", || FullConfig::default().into()),
];

impl MethodConfig {
    /// Returns the settings with this name in [`METHOD_PRESETS`].
    ///
    /// # Errors
    /// [`AdapterError::UnknownMethod`] with the known names.
    ///
    /// ```
    /// use soda_adapters::MethodConfig;
    ///
    /// let method = MethodConfig::preset("pissa")?;
    /// assert!(matches!(method, MethodConfig::Lora(_)));
    /// assert!(MethodConfig::preset("lroa").is_err());
    /// # Ok::<(), soda_adapters::AdapterError>(())
    /// ```
    pub fn preset(name: &str) -> Result<Self, AdapterError> {
        let found = METHOD_PRESETS.iter().find(|(preset, _)| *preset == name);
        found.map(|(_, make)| make()).ok_or_else(|| AdapterError::UnknownMethod {
            found: name.to_owned(),
            known: METHOD_PRESETS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
        })
    }
}
