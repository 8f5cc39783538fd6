--- Errors as values: {code, message, hint}. The codes are those of src/base/err.h and part of the API. One with stale =
--- true comes from a state that may be behind; policy is the name of the policy that was the reason.
local M = {}

-- code -> HTTP status, as in src/base/err.h (spec/unit/errors_spec.lua compares them); the last two lines are Lua's.
local http = {
  out_of_memory = 500, invalid = 400, not_found = 404, exists = 409, conflict = 409, denied = 403,
  unauthenticated = 401, no_quorum = 503, not_leader = 503, outcome_unknown = 503, state_unknown = 503,
  no_space = 507, too_big = 413, timeout = 504, closed = 503, busy = 503, compacted = 410, expired = 403,
  canceled = 499, in_use = 409, corrupt = 500, protocol = 502, unreachable = 502, io = 500,
  policy_failed = 503, policy_timeout = 504, policy_died = 503,
  internal = 500, usage = 400, no_daemon = 503,
  no_cluster = 409, removed = 409,
}

-- code -> exit status of the command that ends with it; 1 for all others.
local exit = { usage = 2, no_daemon = 3, denied = 4, unauthenticated = 4, expired = 4, no_quorum = 5, canceled = 130 }

local Error = { __name = "error" }
Error.__tostring = function(err)
  return ("%s (%s)"):format(err.message, err.code)
end

--- An error; @hint, what to do about it, may be nil.
function M.new(code, message, hint)
  return setmetatable({ code = code, message = message, hint = hint }, Error)
end

--- Raises one. Handlers of requests and commands may: it becomes their answer.
function M.raise(code, message, hint)
  error(M.new(code, message, hint), 0)
end

--- True for an error as made here or in C.
function M.is(v)
  return type(v) == "table" and type(v.code) == "string" and type(v.message) == "string"
end

--- Makes an error of whatever was raised or handed to a callback: those stay, all else is "internal" unless @code.
function M.from(v, code)
  if M.is(v) then
    return v
  end
  return M.new(code or "internal", tostring(v))
end

--- The same error with "prefix: " before its message.
function M.wrap(err, prefix)
  err = M.from(err)
  local wrapped = M.new(err.code, prefix .. ": " .. err.message, err.hint)
  wrapped.traceback = err.traceback
  return wrapped
end

--- For xpcall: keeps errors, and gives what is a bug its traceback.
function M.handler(v)
  if M.is(v) then
    return v
  end
  local err = M.from(v)
  err.traceback = debug.traceback(err.message, 2)
  return err
end

--- The HTTP status of an answer with this error.
function M.http_status(err)
  return http[err.code] or 500
end

--- The exit status of a command that ends with this error.
function M.exit_code(err)
  return exit[err.code] or 1
end

--- What goes over the wire. The message may quote bytes from outside.
function M.body(err)
  local clean = require("symphony.json").clean
  return { error = { code = err.code, message = clean(err.message), hint = err.hint and clean(err.hint),
    stale = err.stale == true or nil, policy = err.policy and clean(err.policy) or nil } }
end

return M
