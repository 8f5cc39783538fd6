local errors = require "symphony.errors"
local render = require "symphony.cli.render"

return {
  name = "version",
  summary = "The versions of this client and of the daemon",
  where = "client",
  run = function(ctx)
    local daemon, err = ctx.call("GET", "/v1/version")
    local failed = not daemon and err.code ~= "no_daemon" -- one that is not running is no mistake
    if failed then
      ctx.status = errors.exit_code(err)
      ctx.err(render.error(err, ctx))
    end
    local data = {
      client = require("sym.sys").version,
      daemon = daemon and daemon.version or require("symphony.json").null,
    }
    return data, {
      text = function()
        local ours = "symphony " .. data.client
        return failed and ours or ours .. "\nsymphonyd " .. (daemon and daemon.version or "does not answer")
      end,
    }
  end,
}
