--- One conversation with the daemon: an environment that lives from line to line, and the running of a chunk in it.
local async = require "symphony.async"
local env = require "symphony.repl.env"
local errors = require "symphony.errors"
local lazy = require "symphony.lazy"
local raised = require "symphony.repl.raised"
local sys = require "sym.sys"

local show = lazy "symphony.repl.show"

local M = {}

--- A session; where it prints is said at every eval.
function M.new()
  local session = {}
  session.env = env.new(session)
  return session
end

--- The function of @code: as an expression, else as statements. nil, err; nil, err, true if the code is not finished.
function M.compile(session, code, name)
  local fn = load("return " .. code, name, "t", session.env)
  if fn then
    return fn
  end
  local err
  fn, err = load(code, name, "t", session.env)
  if fn then
    return fn
  end
  return nil, errors.new("syntax", raised.short(err)), err:match("<eof>$") ~= nil
end

local function nowhere() end

-- What sys.guarded has given as the error. Out of memory no handler has seen it; and EXIT is not always os.exit's.
local function error_of(v)
  return errors.is(v) and v or errors.new("error", tostring(v))
end

-- The values as text, or what was raised on the way. The code may have made them large, and JSON has no room for all.
local function render(results, opts)
  local done = table.pack(sys.guarded(raised.handler, function()
    if not opts.json then return show.show_all(results, opts.color) end
    local json = require "symphony.json"
    if results.n <= 1 then return json.encode(results[1]) .. "\n" end
    local list = {}
    for i = 1, results.n do
      list[i] = results[i] == nil and json.null or results[i]
    end
    return json.encode(list) .. "\n"
  end))
  if done[1] then return done[2] end
  local err = error_of(done[2])
  return nil, errors.new(err.code, err.message)
end

--- Runs a function of M.compile; @opts: args for its `...`; out(text) and err(text), for what it prints, and
--- note(line), for what is not part of that, all of which may wait; json, color: how the values are shown. In a task.
--- Returns {n =, values..., text = the values as text, nil if there are none} or {exit = status}; or nil, {code,
--- message, trace}.
function M.run(session, fn, opts)
  session.out, session.err, session.note, session.exit = opts.out, opts.err or opts.out, opts.note or nowhere, nil
  local results = table.pack(sys.guarded(raised.handler, fn, table.unpack(opts.args or {})))
  session.out, session.err, session.note = nowhere, nowhere, nowhere
  if session.exit then
    return { n = 0, exit = session.exit }
  elseif not results[1] then
    return nil, error_of(results[2])
  end
  if results.n > 1 then
    rawset(session.env, "_", results[2])
  end
  results = table.move(results, 2, results.n, 1, { n = results.n - 1 })
  if results.n > 0 or opts.json then
    async.sleep(0) -- in a turn of its own: the code may have used up this one
    local text, err = render(results, opts)
    if not text then return nil, err end
    results.text = text
  end
  return results
end

return M
