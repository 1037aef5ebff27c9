//! Enums of modules whose variants add no level to the paths of their parameters.
//!
//! The derive macro of burn gives each variant a level of its own, but a checkpoint's keys do not say which
//! variant a network has. So [`Module`](burn::module::Module) is implemented here, and every method delegates
//! to the variant.

/// Implements burn's `Module`, and what it needs, for an enum with one module in each variant.
macro_rules! module_enum {
    ($name:ident { $($variant:ident),+ }) => {
        impl burn::module::Module for $name {
            fn collect_devices(&self, devices: burn::module::Devices) -> burn::module::Devices {
                match self { $(Self::$variant(module) => module.collect_devices(devices)),+ }
            }

            fn fork(self, device: &burn::tensor::Device) -> Self {
                match self { $(Self::$variant(module) => Self::$variant(module.fork(device))),+ }
            }

            fn to_device(self, device: &burn::tensor::Device) -> Self {
                match self {
                    $(Self::$variant(module) => Self::$variant(module.to_device(device))),+
                }
            }

            fn train(self) -> Self {
                match self { $(Self::$variant(module) => Self::$variant(module.train())),+ }
            }

            fn valid(&self) -> Self {
                match self { $(Self::$variant(module) => Self::$variant(module.valid())),+ }
            }

            fn materialize(self) -> Self {
                match self { $(Self::$variant(module) => Self::$variant(module.materialize())),+ }
            }

            fn visit<V: burn::module::ModuleVisitor>(&self, visitor: &mut V) {
                match self { $(Self::$variant(module) => module.visit(visitor)),+ }
            }

            fn map<M: burn::module::ModuleMapper>(self, mapper: &mut M) -> Self {
                match self { $(Self::$variant(module) => Self::$variant(module.map(mapper))),+ }
            }
        }

        impl burn::module::ModuleDisplayDefault for $name {
            fn content(&self, content: burn::module::Content) -> Option<burn::module::Content> {
                match self { $(Self::$variant(module) => module.content(content)),+ }
            }

            fn num_params(&self) -> usize {
                match self {
                    $(Self::$variant(module) => burn::module::Module::num_params(module)),+
                }
            }
        }

        impl burn::module::ModuleDisplay for $name {}

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self { $(Self::$variant(module) => module.fmt(f)),+ }
            }
        }
    };
}

pub(crate) use module_enum;
