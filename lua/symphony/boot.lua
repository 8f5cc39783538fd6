--- The daemon's start: routes, commands, and then what this node was when it stopped.
local M = {}

-- Modules with a function routes(router); those of a part that is not installed are left out.
local routes = {
  "symphony.api.routes_cluster",
  "symphony.api.routes_metrics",
  "symphony.cli.runner",
  "symphony.repl.server",
}

--- Called once by the program. What fails here keeps the daemon from starting; nothing does later.
function M.main()
  local router = require "symphony.api.router"
  router.route("GET", "/v1/version", { auth = { control = true, manager = true, worker = true, operator = true,
    reader = true } }, function()
    return 200, { version = require("sym.sys").version }
  end)
  for _, name in ipairs(routes) do
    require(name).routes(router)
  end
  require("sym.node").on_request(function(_, req)
    router.dispatch(req)
  end)
  require("symphony.cluster.lifecycle").start()
end

return M
