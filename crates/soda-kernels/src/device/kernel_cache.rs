//! A cache of compiled kernels on disk.

use burn_cubecl::cubecl::config::cache::CacheConfig;
use burn_cubecl::cubecl::config::compilation::CompilationConfig;
use burn_cubecl::cubecl::config::environment::EnvironmentConfig;
use burn_cubecl::cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};

/// Enables the cache of compiled kernels in the user's cache folder, for this process and later ones.
///
/// The call has to come before the first tensor. A `cubecl.toml` or `burn.toml` in the working directory or a
/// folder above it takes precedence.
pub fn enable_kernel_cache() {
    let configured = std::env::current_dir().is_ok_and(|folder| {
        ["cubecl.toml", "CubeCL.toml", "burn.toml", "Burn.toml"]
            .iter()
            .any(|file| folder.ancestors().any(|folder| folder.join(file).is_file()))
    });
    if configured {
        return;
    }
    let config = CubeClRuntimeConfig {
        compilation: CompilationConfig { cache: true, ..Default::default() },
        environment: EnvironmentConfig { path: CacheConfig::Global, ..Default::default() },
        ..Default::default()
    };
    // After the first tensor the configuration is fixed, and this call has no effect.
    CubeClRuntimeConfig::try_set(config.override_from_env());
}
