//! The features that the LLVM path can lower.

/// Device features by target.
pub mod lowered_features {
    use cubecl_core::ir::DeviceProperties;

    /// A GPU that the LLVM path compiles for.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum GpuTarget {
        /// An NVIDIA card.
        Nvptx,
    }

    /// Leaves the properties unchanged: nothing is lowered, so no feature has to be hidden.
    pub fn restrict_features(_properties: &mut DeviceProperties, _target: GpuTarget) {}
}
