--- Figures of the process, its loop and its Lua.
local async = require "symphony.async"
local c = require "sym.metrics"
local metrics = require "symphony.metrics"
local sys = require "sym.sys"

local counter, gauge, histogram = metrics.counter, metrics.gauge, metrics.histogram

local M = {}

--- Under the names that Prometheus's own client libraries give them.
function M.process()
  local p = c.process()
  return {
    counter("process_cpu_seconds_total", "User and system CPU time spent.", p.cpu_seconds),
    gauge("process_resident_memory_bytes", "Resident memory.", p.resident_bytes),
    gauge("process_virtual_memory_bytes", "Virtual memory.", p.virtual_bytes),
    gauge("process_threads", "Threads.", p.threads),
    gauge("process_open_fds", "Open file descriptors.", p.open_fds),
    gauge("process_max_fds", "The most file descriptors that may be open.", p.max_fds),
    gauge("process_start_time_seconds", "When the process started, in seconds since 1970.",
      p.start_time > 0 and p.start_time or nil),
  }
end

function M.loop()
  local loop, tasks = c.loop(), async.stats()
  return {
    gauge("symphony_build_info", "Always 1; the version of this daemon.", 1, { version = sys.version }),
    histogram("symphony_loop_turn_seconds", "How long a turn keeps the event loop busy; everything else waits so long.",
      loop.turns),
    histogram("symphony_loop_timer_delay_seconds", "How late a timer comes that is due once a second.", loop.late),
    gauge("symphony_loop_requests", "Requests of the event loop under way: writes, work of the thread pool.",
      loop.requests),
    gauge("symphony_loop_handles", "Active handles of the event loop: connections, timers.", loop.handles),
    gauge("symphony_lua_memory_bytes", "Memory that Lua has in use.", collectgarbage("count") * 1024),
    gauge("symphony_lua_tasks", "Tasks of Lua that have not ended.", tasks.alive),
    counter("symphony_lua_tasks_started_total", "Tasks of Lua.", tasks.started),
    counter("symphony_lua_task_failures_total", "Tasks of Lua that ended with an error that nobody had asked for.",
      tasks.failed),
  }
end

function M.register()
  metrics.source("process", M.process)
  metrics.source("loop", M.loop)
end

return M
