--- The daemon's start: routes, commands, and then what this node was when it stopped.
local M = {}

-- Modules with a function routes(router): of every daemon, and of a manager's.
local everywhere = {
  "symphony.api.routes_gossip",
  "symphony.api.routes_here",
  "symphony.api.routes_metrics",
  "symphony.api.routes_service",
  "symphony.cli.runner",
  "symphony.repl.server",
}
local managers = { "symphony.api.routes_cluster" }

--- Called once by the program. What fails here keeps the daemon from starting; nothing does later.
function M.main()
  local router = require "symphony.api.router"
  router.route("GET", "/v1/version", { auth = { control = true, manager = true, worker = true, operator = true,
    reader = true } }, function()
    return 200, { version = require("sym.sys").version }
  end)
  local is_manager = require("symphony.cluster.identity").role() == "manager"
  if #(require("sym.sys").options().lua_dirs or {}) > 0 then require("symphony.modules").start() end
  for _, list in ipairs { everywhere, is_manager and managers or {} } do
    for _, name in ipairs(list) do require(name).routes(router) end
  end
  require("sym.node").on_request(function(_, req)
    router.dispatch(req)
  end)
  -- A worker has little to do, and shares its machine with what it is for: its memory counts, and not the time.
  if not is_manager then collectgarbage("setpause", 120) end
  require(is_manager and "symphony.cluster.lifecycle" or "symphony.cluster.worker").start()
end

return M
