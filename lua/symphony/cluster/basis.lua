-- What a request from outside rests on: that the state says of the key of who asks what it said when it was judged.
-- A manager judges by its own state, which may be behind; so what it passes on to the leader carries this, the leader
-- looks again, and every txn that the request leads to compares it (state.submit), so that a change that was under way
-- when its maker was taken out of the state is not made.
local async = require "symphony.async"
local errors = require "symphony.errors"

local M = {}

M.HEADER = "symphony-basis" -- of a request that was passed on: the key's fingerprint, a space, whose the state has it
local FORWARDED = "symphony-forwarded"
local HEADER_MAX = 256

local function entry(fingerprint, owner)
  return { key = "/fingerprint/" .. fingerprint, value = owner }
end

-- The compares for @req, of @who (from the router): of the peer, and, when it is a manager that passes it on, of the
-- one for whom. nil: it rests on nothing, as at the control socket. Raises "invalid".
function M.of(req, who)
  local fingerprint = req.peer.fingerprint
  if not fingerprint or not who.id then return nil end
  local list = { entry(fingerprint, who.client and who.kind .. " " .. who.id or who.id) }
  local text = who.kind == "manager" and req:header(FORWARDED) and req:header(M.HEADER)
  if text then
    local key, owner = text:match("^(%x+) (.+)$")
    if not key or #text > HEADER_MAX then errors.raise("invalid", M.HEADER .. " is damaged") end
    list[2] = entry(key, owner)
  end
  return list
end

-- What stands in the header of a request that is passed on for who asked first: @list from of().
function M.to_header(list)
  local asker = list and list[#list]
  return asker and ("%s %s"):format(asker.key:match("[^/]*$"), asker.value) or nil
end

-- What is said to who was taken out of the state, or got another role, while its request was under way.
function M.outcast()
  return errors.new("denied", "the owner of this certificate is not, or no longer, one who may do this")
end

-- Does the state here say what @list from of() rests on?
function M.holds(list)
  local state = require "symphony.cluster.state"
  for _, each in ipairs(list or {}) do
    if state.text(each.key) ~= each.value then return false end
  end
  return true
end

-- Makes the running task, and those that it waits for, rest on @list. Raises "denied" if the state does not say so of
-- the one for whom the request was passed on; when this manager may be behind, it makes sure first.
function M.take(list)
  async.bind(list)
  local passed = list and list[2]
  local state = passed and require("symphony.cluster.state")
  if not passed or state.text(passed.key) == passed.value then return end
  assert(state.read())
  if state.text(passed.key) ~= passed.value then error(M.outcast(), 0) end
end

return M
