//! What is measured; the programs in `src/bin` measure it.

pub mod chaos;
pub mod faults;
pub mod flawed;
pub mod hit;
pub mod miss;
pub mod network;
pub mod pages;
pub mod process;
pub mod races;
pub mod redis;
pub mod stampede;
pub mod table;
pub mod values;
