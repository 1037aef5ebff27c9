//! The methods by name: the table that configurations, adapter files and the command line choose from.
//!
//! A row makes a variant of the configuration (serde tag `name`) and of the adapter; everything below is
//! generic and never asks which method it has.

use crate::boft::BoftConfig;
use crate::full::FullConfig;
use crate::loha::LohaConfig;
use crate::lokr::LokrConfig;
use crate::lora::LoraConfig;
use crate::oft::OftConfig;
use crate::soda::SodaConfig;

/// Makes one configuration and one adapter out of many methods: `name: Variant(Config)` by row.
///
/// The configuration is itself a [`Method`](crate::Method). A crate with methods of its own makes its own
/// table, with the rows of this one that it wants; it needs `burn` and `serde` as dependencies.
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
        #[allow(missing_docs, reason = "each variant is documented at its configuration")]
        #[allow(clippy::large_enum_variant, reason = "one a layer, and a tensor is as large as its backend says")]
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

            fn adapter(
                &self,
                path: &str,
                weight: &$crate::Weight,
            ) -> Result<$adapter, $crate::AdapterError> {
                match self {
                    $(Self::$variant(config) => {
                        $crate::Method::adapter(config, path, weight).map($adapter::$variant)
                    })+
                }
            }

            fn decomposes(&self) -> bool {
                match self { $(Self::$variant(config) => $crate::Method::decomposes(config),)+ }
            }

            fn geometry(&self, path: &str) -> $crate::Geometry {
                match self { $(Self::$variant(config) => $crate::Method::geometry(config, path),)+ }
            }
        }

        impl $crate::Adapter for $adapter {
            fn apply(&self, w: ::burn::tensor::Tensor<2>) -> ::burn::tensor::Tensor<2> {
                match self { $(Self::$variant(adapter) => $crate::Adapter::apply(adapter, w),)+ }
            }

            fn at_strength(self, t: f64) -> Result<Self, $crate::LinalgError> {
                Ok(match self {
                    $(Self::$variant(adapter) => {
                        Self::$variant($crate::Adapter::at_strength(adapter, t)?)
                    })+
                })
            }

            fn product(
                &self,
                x: &::burn::tensor::Tensor<2>,
                w: &::burn::tensor::Tensor<2>,
            ) -> Option<::burn::tensor::Tensor<2>> {
                match self { $(Self::$variant(adapter) => $crate::Adapter::product(adapter, x, w),)+ }
            }

            fn low_rank(&self) -> Option<(::burn::tensor::Tensor<2>, ::burn::tensor::Tensor<2>)> {
                match self { $(Self::$variant(adapter) => $crate::Adapter::low_rank(adapter),)+ }
            }

            fn combine(
                parts: Vec<(f64, Self)>,
                how: $crate::merge::Combine,
            ) -> Result<Option<Self>, $crate::LinalgError> {
                // Those of the variant; fewer than all are adapters of different methods.
                let all = parts.len();
                $(
                    let same: Vec<_> = parts
                        .iter()
                        .filter_map(|(weight, part)| match part {
                            Self::$variant(part) => Some((*weight, part.clone())),
                            #[allow(unreachable_patterns, reason = "a table may have one row")]
                            _ => None,
                        })
                        .collect();
                    if same.len() == all {
                        return Ok($crate::Adapter::combine(same, how)?.map(Self::$variant));
                    }
                )+
                Ok(None)
            }
        }

        // By hand, because a derived enum puts the variant's name into every path.
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
    /// Any method of this crate, with its settings.
    MethodConfig,
    /// Any adapter of this crate.
    AnyAdapter:
    /// SODA, SVDiff and Kronecker rotations.
    "soda" => Soda(SodaConfig),
    /// LoRA, rank-stabilised LoRA, PiSSA and DoRA.
    "lora" => Lora(LoraConfig),
    /// Hadamard products of low rank.
    "loha" => Loha(LohaConfig),
    /// Kronecker products.
    "lokr" => Lokr(LokrConfig),
    /// Block-diagonal rotations.
    "oft" => Oft(OftConfig),
    /// Butterflies of block-diagonal rotations.
    "boft" => Boft(BoftConfig),
    /// The weights themselves.
    "full" => Full(FullConfig),
}

impl Default for MethodConfig {
    fn default() -> Self {
        Self::Soda(SodaConfig::default())
    }
}

type Preset = (&'static str, fn() -> MethodConfig);

/// Named settings: what a command line offers. The names of papers and peers, each at its usual defaults.
pub const METHOD_PRESETS: &[Preset] = &[
    ("soda", || SodaConfig::default().into()),
    ("soda-qr", || SodaConfig::qr().into()),
    ("soda-qr-low-rank", || SodaConfig::qr_low_rank(8).into()),
    ("soda-paper", || SodaConfig::paper().into()),
    ("svdiff", || SodaConfig::svdiff().into()),
    ("kronecker", || SodaConfig::rotation_only().into()),
    ("lora", || LoraConfig::default().into()),
    ("pissa", || LoraConfig::pissa().into()),
    ("dora", || LoraConfig::dora().into()),
    ("loha", || LohaConfig::default().into()),
    ("lokr", || LokrConfig::default().into()),
    ("oft", || OftConfig::default().into()),
    ("boft", || BoftConfig::default().into()),
    ("full", || FullConfig::default().into()),
];

impl MethodConfig {
    /// The settings with this name in [`METHOD_PRESETS`].
    ///
    /// # Errors
    /// A name that is not there; the message lists those that are.
    pub fn preset(name: &str) -> Result<Self, crate::AdapterError> {
        let found = METHOD_PRESETS.iter().find(|(preset, _)| *preset == name);
        found.map(|(_, make)| make()).ok_or_else(|| crate::AdapterError::UnknownMethod {
            found: name.to_owned(),
            known: METHOD_PRESETS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
        })
    }
}
