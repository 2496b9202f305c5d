mod golden;
mod io;
mod tiny_task;
