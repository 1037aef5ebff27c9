//! What the LLVM path can lower.

/// Device features by target.
pub mod lowered_features {
    use cubecl_core::ir::DeviceProperties;

    /// A GPU the LLVM path would compile for.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum GpuTarget {
        /// An NVIDIA card.
        Nvptx,
    }

    /// Leaves the properties alone: nothing is lowered, so nothing needs to be hidden.
    pub fn restrict_features(_properties: &mut DeviceProperties, _target: GpuTarget) {}
}
