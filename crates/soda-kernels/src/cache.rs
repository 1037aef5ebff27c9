//! Compiled kernels on disk: what makes a second start quick.

use burn_cubecl::cubecl::config::cache::CacheConfig;
use burn_cubecl::cubecl::config::compilation::CompilationConfig;
use burn_cubecl::cubecl::config::environment::EnvironmentConfig;
use burn_cubecl::cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};

/// Keeps compiled kernels in the user's cache folder, for this process and the next ones. To be called before the first
/// tensor; a `cubecl.toml` or `burn.toml` in the working directory decides instead.
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
    // Where something was computed before, that configuration stays.
    CubeClRuntimeConfig::try_set(config.override_from_env());
}
