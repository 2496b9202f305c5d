mod io;
mod tiny_task;
