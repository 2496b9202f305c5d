mod architecture;
mod golden;
mod io;
mod ops;
mod tiny_task;
