//! A layer under the key of its patch size.
//!
//! diffusers keeps the layers that depend on the size of a patch in a dictionary, as in
//! `all_x_embedder.2-1.weight` for patches of 2 x 2 latents of one frame. All published models have this size
//! alone, and a field of Rust cannot have the name.

use burn::module::{
    Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor,
};
use burn::tensor::Device;

/// The key of the patch size.
const KEY: &str = "2-1";

/// The kind of container that visitors are told.
const KIND: &str = "Struct:ByPatch";

/// A layer one level down, under the key of the only patch size.
#[derive(Debug, Clone)]
pub struct ByPatch<M>(pub M);

/// Written by hand, since the derive macro takes the name of a level from a field.
impl<M: Module> Module for ByPatch<M> {
    fn collect_devices(&self, devices: Devices) -> Devices {
        self.0.collect_devices(devices)
    }

    fn fork(self, device: &Device) -> Self {
        Self(self.0.fork(device))
    }

    fn to_device(self, device: &Device) -> Self {
        Self(self.0.to_device(device))
    }

    fn train(self) -> Self {
        Self(self.0.train())
    }

    fn valid(&self) -> Self {
        Self(self.0.valid())
    }

    fn materialize(self) -> Self {
        Self(self.0.materialize())
    }

    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        visitor.enter_module(KEY, KIND);
        self.0.visit(visitor);
        visitor.exit_module(KEY, KIND);
    }

    fn map<T: ModuleMapper>(self, mapper: &mut T) -> Self {
        mapper.enter_module(KEY, KIND);
        let layer = self.0.map(mapper);
        mapper.exit_module(KEY, KIND);
        Self(layer)
    }
}

impl<M: Module + ModuleDisplay> ModuleDisplayDefault for ByPatch<M> {
    fn content(&self, content: Content) -> Option<Content> {
        content.add(KEY, &self.0).optional()
    }

    fn num_params(&self) -> usize {
        Module::num_params(&self.0)
    }
}

impl<M: Module + ModuleDisplay> ModuleDisplay for ByPatch<M> {}

impl<M: Module + ModuleDisplay> std::fmt::Display for ByPatch<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.format(burn::module::DisplaySettings::default()))
    }
}
