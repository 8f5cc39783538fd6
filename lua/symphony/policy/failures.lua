--- How often policies have failed in a row, on this manager. One that has failed MAX times is disabled.
local async = require "symphony.async"
local errors = require "symphony.errors"
local log = require "sym.log"
local node = require "sym.node"

local M = {}

M.MAX = 10 -- in a row, of one policy

local known = {} -- name -> {version, n, heard}

local function give_up(name, version, n, why)
  async.spawn(function()
    local ok, err = pcall(require("symphony.policy.store").give_up, name, version,
      ("it failed %d times in a row, at last: %s"):format(n, why))
    if not ok then log.error(("policy: %s cannot be disabled: %s"):format(name, errors.from(err).message)) end
  end)
end

--- The policy @name has failed, which is @why; or it has not (nil). @version: of it, nil when it is not enabled.
function M.note(name, version, why)
  local row = known[name]
  if not why or not version then
    known[name] = nil
    return
  end
  -- What is decided without Lua is heard of only here.
  local heard = node.kv_heard(name)
  if not row or row.version ~= version or row.heard ~= heard then row = { version = version, n = 0 } end
  row.heard = heard
  known[name] = row
  row.n = row.n + 1
  log.warn(("policy: %s failed: %s"):format(name, why))
  if row.n % M.MAX == 0 then give_up(name, version, row.n, why) end
end

--- Forgets all but those that are keys of @names.
function M.keep(names)
  for name in pairs(known) do
    if names[name] == nil then known[name] = nil end
  end
end

--- How often each has failed in a row: name -> count.
function M.all()
  local out = {}
  for name, row in pairs(known) do out[name] = row.n end
  return out
end

return M
