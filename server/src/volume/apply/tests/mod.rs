//! Each rule of the operations by itself.

mod attributes;
mod names;
mod orphans;
mod rename;
