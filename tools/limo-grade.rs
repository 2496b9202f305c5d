fn main() -> std::process::ExitCode {
    limo_engine::cli::tools::grade()
}
