-- What code at a prompt has raised, as an error that may go anywhere. It may be anything of the code's own, and nothing
-- stops what its metamethods would do here: they are not called.
local M = {}

local MESSAGE_MAX, TRACE_MAX = 8 << 10, 32 << 10 -- bytes; there may be names of any length in them

--- What os.exit raises.
M.EXIT = setmetatable({}, { __name = "exit", __tostring = function() return "os.exit" end })

local function cut(text, max)
  return #text > max and text:sub(1, max) .. "..." or text
end

--- A message, cut.
function M.short(text)
  return cut(text, MESSAGE_MAX)
end

-- The traceback without what is not the user's code: what is below it, this handler, and what is called for it.
local function traceback(text)
  local trace = cut(debug.traceback(text, 3), TRACE_MAX):gsub("\n%s*%[C%]: in function 'sym%.sys%.guarded'.*", "")
    :gsub("(\nstack traceback:)\n%s*%[C%]: in %?%f[\n\0]", "%1", 1)
    :gsub("\n%s*%[C%]: in function 'sym%.sys%.unguarded'", "")
    :gsub("\n[^\n]*symphony/repl/env[%w_]*%.lua:%d+:[^\n]*", "")
  return (trace:gsub("\n%s*%(%.%.%.tail calls%.%.%.%)$", ""):gsub("\nstack traceback:$", ""))
end

--- For sys.guarded: {code, message, hint, trace} of what was raised; EXIT as it is.
function M.handler(v)
  if rawequal(v, M.EXIT) then return v end
  local err = {}
  if type(v) == "table" then
    for _, field in ipairs { "code", "message", "hint", "trace" } do
      local text = rawget(v, field)
      err[field] = type(text) == "string" and M.short(text) or nil
    end
  end
  local known = err.code and err.message
  if known and err.trace then return err end
  local text = type(v) == "string" and M.short(v) or known and ("%s (%s)"):format(err.message, err.code)
    or ("(the error is a %s)"):format(type(v))
  return { code = known and err.code or "error", message = text, hint = known and err.hint, trace = traceback(text) }
end

return M
