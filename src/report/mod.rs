//! Reports: one HTML file with tables and plots, which loads nothing from elsewhere and follows the reader's light or dark setting.

mod page;
mod plot;
mod review;

pub use page::Report;
pub use plot::{Bar, bins};
pub use review::{Review, review};
