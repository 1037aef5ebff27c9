//! PTX versions.

/// The PTX ISA version a driver loads.
pub mod ptx_version {
    /// A version in the spelling of the NVPTX target: 9.0 is `90`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct PtxVersion(u32);

    impl PtxVersion {
        /// The version for a driver. Only the LLVM path asks for it, so the result is always `None`, the
        /// default.
        pub fn for_driver(_driver: i32) -> Option<Self> {
            None
        }
    }

    impl core::fmt::Display for PtxVersion {
        fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
            write!(f, "ptx{}", self.0)
        }
    }
}
