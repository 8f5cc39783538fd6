-- POST /v1/manager/join and /v1/block/join: what the client at the control socket asks of this very daemon. Both are
-- there in every daemon, so that the wrong one is told so.
local async = require "symphony.async"
local errors = require "symphony.errors"
local json = require "symphony.json"
local join = require "symphony.lazy" "symphony.cluster.join"

local M = {}

-- Streams {"say": text} while it goes on, and at the end {"done": answer} or {"error": {...}}.
local function join_here(router, req, own)
  local body = router.json(req)
  local task, over = async.current(), false
  req:on_gone(function()
    if not over then task:cancel() end
  end)
  req:start(200, "application/x-ndjson")
  local function send(message)
    return async.await(req.write, req, json.encode(message) .. "\n")
  end
  local function word(name)
    return type(body[name]) == "string" and body[name] or nil
  end
  local ok, answer, err = xpcall(join.run, errors.handler,
    { word = own, address = word "address" or "", token = word "token", name = word "name",
      advertise = word "advertise" },
    function(text) send { say = text } end)
  over = true
  if not ok then err, answer = answer, nil end
  if answer then
    send { done = answer }
  else
    err = errors.from(err)
    if err.code == "internal" then
      require("sym.log").error("join: " .. (err.traceback or err.message))
      err = errors.new("internal", "an error in symphony itself", "the log of this daemon has the details")
    end
    send(errors.body(err))
  end
  req:finish()
  return router.STREAM
end

function M.routes(router)
  local opts = { auth = { control = true }, timeout_ms = false }
  router.route("POST", "/v1/manager/join", opts, function(req)
    return join_here(router, req, "manager")
  end)
  router.route("POST", "/v1/block/join", opts, function(req)
    return join_here(router, req, "block")
  end)
end

return M
