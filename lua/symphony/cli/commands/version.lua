return {
  name = "version",
  summary = "The versions of this client and of the daemon",
  where = "client",
  run = function(ctx)
    local daemon = ctx.call("GET", "/v1/version")
    local data = {
      client = require("sym.sys").version,
      daemon = daemon and daemon.version or require("symphony.json").null,
    }
    return data, {
      text = function()
        return ("symphony %s\nsymphonyd %s"):format(data.client, daemon and daemon.version or "does not answer")
      end,
    }
  end,
}
